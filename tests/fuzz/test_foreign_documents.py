"""Hostile documents of foreign services raise refusals and nothing else."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.client.attestation import quote_without_collateral
from libs.client.foreign import ForeignEvidence, parse_evidence, verify_upstream_session
from libs.client.vllm_proxy import quote_of
from libs.client.worker_answers import named_in, read_whole
from libs.errors import MeshError
from libs.policy.foreign import ForeignKind, ForeignProvider

PROVIDER = ForeignProvider("a", ForeignKind.ACI, "https://a.example", {"m": "n"})

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["00", "[]", "{}", "ed25519"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_MEMBERS = ("signing_address", "signing_algo", "intel_quote", "event_log", "info", "tls_cert_fingerprint")


def _hostile(document: bytes) -> None:
    for read in (quote_of, quote_without_collateral, parse_evidence):
        with pytest.raises(MeshError):
            read(document)
    with pytest.raises(MeshError):
        verify_upstream_session(document, "00" * 32, PROVIDER, 0)
    assert read_whole(document).hashes
    named_in(document)


@given(document=st.binary(max_size=200))
@example(b"\xff\xfe{\x00}\x00")
@example(b"[" * 100_000)
@settings(max_examples=100, deadline=None)
def test_any_bytes_may_come(document: bytes) -> None:
    _hostile(document)


@given(document=st.fixed_dictionaries({}, optional=dict.fromkeys(_MEMBERS, _JSON)))
@settings(max_examples=100, deadline=None)
def test_any_member_of_a_workers_report_may_hold_anything(document: dict[str, Any]) -> None:
    _hostile(json.dumps(document).encode())


@given(name=st.sampled_from(["format", "origin", "nonce", "report", "session_ids", "collateral"]), value=_JSON)
@settings(max_examples=100, deadline=None)
def test_any_member_of_a_routers_evidence_may_hold_anything(name: str, value: object) -> None:
    honest = json.loads(ForeignEvidence("https://a.example", "00" * 32, "{}", None).document())
    with suppress(MeshError):
        assert isinstance(parse_evidence(json.dumps({**honest, name: value}).encode()), ForeignEvidence)
