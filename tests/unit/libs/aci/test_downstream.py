"""Which TLS key a report has its clients pin."""

from __future__ import annotations

from typing import Any

import pytest

from libs.aci import downstream, keyset
from libs.aci.downstream import MEMBER, DownstreamBindingMalformed
from libs.aci.keyset import Keyset, TlsKey

A, B = "a.example", "b.example"
OF_A, OF_B, OF_ALL = "aa" * 32, "bb" * 32, "cc" * 32


def listing(*keys: TlsKey) -> Keyset:
    return keyset.build(subject=None, not_after=1, receipt_keys={"r": b"\1" * 32}, tls_keys=keys)


SCOPED = listing(TlsKey(OF_ALL), TlsKey(OF_A, A), TlsKey(OF_B, B))


@pytest.mark.parametrize(("host", "named"), [(A, OF_A), (B, OF_B), ("c.example", OF_ALL), ("127.0.0.1", OF_ALL)])
def test_a_host_is_told_its_own_key_else_the_one_for_all_and_reads_it_again(host: str, named: str) -> None:
    said = downstream.binding(SCOPED, host)
    assert said == {MEMBER: {"domain": host, "spki_sha256": named}}
    assert downstream.pins(SCOPED, downstream.read(said), host.upper()) == {named}


def test_nothing_is_told_where_no_key_is_a_hosts_or_the_host_is_not_known_or_has_none() -> None:
    assert downstream.binding(listing(TlsKey(OF_ALL)), A) == {}
    assert downstream.binding(SCOPED, "") == {}
    assert downstream.binding(listing(TlsKey(OF_A, A)), B) == {}


def test_without_the_member_a_client_pins_what_the_keyset_lists() -> None:
    assert downstream.read({}) is None
    assert downstream.pins(SCOPED, None, A) == {OF_ALL, OF_A}


@pytest.mark.parametrize(
    "named", [TlsKey(OF_B, A), TlsKey(OF_B, B), TlsKey(OF_A, B), TlsKey(OF_ALL, B), TlsKey("dd" * 32, A)]
)
def test_it_adds_nothing_and_holds_for_its_own_host_alone(named: TlsKey) -> None:
    assert downstream.pins(SCOPED, named, A) == frozenset()


@pytest.mark.parametrize(
    "value", [None, [], A, {}, {"domain": A}, {"spki_sha256": OF_A}, {"domain": "", "spki_sha256": OF_A},
              {"domain": A, "spki_sha256": OF_A.upper()}, {"domain": A, "spki_sha256": "aa"}]
)  # fmt: skip
def test_what_names_no_host_or_no_key_is_refused(value: Any) -> None:
    with pytest.raises(DownstreamBindingMalformed):
        downstream.read({MEMBER: value})
