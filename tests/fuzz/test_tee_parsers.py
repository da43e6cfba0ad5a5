"""Hostile bytes raise only the parsers' own errors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs import jcs
from libs.errors import MeshError
from libs.tee import eventlog, evidence, tdx
from libs.tee.appraisal import appraise
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from tests.unit.libs.tee.bench import NOW, Bench

_BOUND = settings(max_examples=150, deadline=None, derandomize=True)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=60).map(bytes.hex),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)

_MEMBERS = (
    "v",
    "tee_type",
    "quote",
    "event_log",
    "app_compose",
    "spki",
    "claims",
    "challenge",
    "gpu_evidence",
    "collateral",
)


@cache
def _bench() -> Bench:
    return Bench.create()


@cache
def _document() -> bytes:
    return _bench().evidence().document


def _only_mesh_errors(action: Callable[[], object]) -> None:
    try:
        action()
    except MeshError as refusal:
        assert refusal.reason  # noqa: PT017 - both outcomes are fine; any other exception is the failure.


@_BOUND
@given(st.binary(max_size=400))
@example(b"{}")
@example(b"[" * 2000)
def test_any_bytes_as_evidence(data: bytes) -> None:
    _only_mesh_errors(lambda: evidence.parse(data))
    _only_mesh_errors(lambda: Challenge.decode(data))
    _only_mesh_errors(lambda: Collateral.decode(data))


@_BOUND
@given(st.sampled_from(_MEMBERS), _JSON)
def test_any_json_in_a_member(name: str, value: Any) -> None:
    document = jcs.loads_object(_document()) | {name: value}

    def act() -> None:
        parsed = evidence.parse(jcs.dumps(document))
        appraise(parsed, _bench().rules(), _bench().context())

    _only_mesh_errors(act)


@_BOUND
@given(
    st.sampled_from(
        ["root_ca_crl", "pck_crl", "tcb_info", "qe_identity", "tcb_info_issuer_chain", "tcb_info_signature"]
    ),
    st.integers(0, 10_000),
    st.text(max_size=8) | st.binary(max_size=4).map(bytes.hex),
)
def test_hostile_collateral_is_refused(name: str, position: int, text: str) -> None:
    good = _bench().collateral().to_json()
    at = position % (len(good[name]) + 1)
    altered = good | {name: good[name][:at] + text + good[name][at + len(text) :]}
    quote = evidence.parse(_document()).quote
    roots = (_bench().machine.vendor_root,)
    _only_mesh_errors(lambda: tdx.verify(quote, Collateral.parse(altered), roots, NOW))


@_BOUND
@given(st.binary(max_size=2000), st.sampled_from([4, 5]))
def test_any_bytes_as_a_quote(data: bytes, version: int) -> None:
    _only_mesh_errors(lambda: tdx.cut(data))
    _only_mesh_errors(lambda: tdx.read_report(data))
    headed = struct.pack("<HHI", version, 2, 0x81) + data
    _only_mesh_errors(lambda: tdx.cut(headed))
    _only_mesh_errors(lambda: tdx.read_report(headed))


@_BOUND
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=8))
def test_altered_quote_is_refused_or_the_same_report(position: int, patch: bytes) -> None:
    quote = bytearray(evidence.parse(_document()).quote)
    at = position % len(quote)
    quote[at : at + len(patch)] = patch

    def act() -> None:
        tdx.verify(tdx.cut(bytes(quote)), _bench().collateral(), (_bench().machine.vendor_root,), NOW)

    _only_mesh_errors(act)


@_BOUND
@given(st.lists(_JSON, max_size=4) | _JSON)
def test_any_json_as_an_event_log(value: Any) -> None:
    def act() -> None:
        events = eventlog.parse(value)
        eventlog.verify_replay(events, (bytes(48),) * 4)
        eventlog.read_identity(events)

    _only_mesh_errors(act)


@_BOUND
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "imr": st.integers(0, 3),
                "event_type": st.just(eventlog.RUNTIME_EVENT_TYPE),
                "digest": st.sampled_from(["", "00" * 48]),
                "event": st.sampled_from(["app-id", "system-ready", "a:b"]) | st.text(max_size=5),
                "event_payload": st.binary(max_size=8).map(bytes.hex),
            }
        ),
        max_size=8,
    )
)
def test_any_well_formed_event_log(value: Any) -> None:
    def act() -> None:
        events = eventlog.parse(value)
        eventlog.verify_replay(events, (bytes(48),) * 4)
        eventlog.read_identity(events)

    _only_mesh_errors(act)


@_BOUND
@given(st.binary(max_size=300), st.binary(max_size=72))
def test_any_certificate_and_signature_on_a_challenge(certificate: bytes, signature: bytes) -> None:
    value = _bench().issuer.challenge().to_json() | {"certificate": certificate.hex(), "signature": signature.hex()}
    _only_mesh_errors(lambda: Challenge.parse(value).verify_signed(_bench().issuer.spki, NOW, 300))
