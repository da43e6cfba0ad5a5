"""Hostile bytes raise only errors of this project, before and after the signatures hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.errors import MeshError
from libs.tee.snp import judgement, verification
from libs.tee.snp import report as reports
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.rules import SnpRule
from tests.fakes.snp_platform import DAY, NOW, chip

_BOUND = settings(max_examples=300, deadline=None, derandomize=True)


@cache
def _report() -> bytes:
    return chip().report()


@cache
def _members() -> dict[str, str]:
    return chip().members()


def _only_mesh_errors(action: Callable[[], object]) -> None:
    try:
        action()
    except MeshError as refusal:
        assert refusal.reason  # noqa: PT017 - both outcomes are fine; any other exception is the failure.


def _appraise(report: bytes) -> None:
    verified = verification.verify(report, SnpEndorsement.parse(_members()), [chip().root], NOW)
    rule = SnpRule({chip().product: chip().tcb}, 30 * DAY)
    judgement.judge_tcb(verified, rule, NOW)
    judgement.judge_guest(verified.report, rule)


@_BOUND
@given(st.binary(max_size=64) | st.binary(min_size=1184, max_size=1184))
def test_any_bytes_as_a_report(data: bytes) -> None:
    _only_mesh_errors(lambda: reports.parse(data))


@_BOUND
@given(st.integers(0, 1183), st.binary(min_size=1, max_size=8))
def test_altered_report(at: int, patch: bytes) -> None:
    report = bytearray(_report())
    report[at : at + len(patch)] = patch
    _only_mesh_errors(lambda: _appraise(bytes(report)))


@_BOUND
@given(st.integers(0, 0x29F), st.binary(min_size=1, max_size=8))
def test_signed_report_of_any_content(at: int, patch: bytes) -> None:
    report = chip().report({at: patch[: 0x2A0 - at]})
    _only_mesh_errors(lambda: _appraise(report))


@_BOUND
@given(st.sampled_from(["vcek", "crl"]), st.integers(0, 1000), st.binary(min_size=1, max_size=4))
@example("vcek", 15, b"\x80")
@example("vcek", 13, b"\x02\x01\x00")
def test_altered_certificate_or_crl(name: str, position: int, patch: bytes) -> None:
    der = bytearray.fromhex(_members()[name])
    at = position % len(der)
    der[at : at + len(patch)] = patch
    members = _members() | {name: bytes(der).hex()}
    _only_mesh_errors(
        lambda: verification.verify(_report(), SnpEndorsement.parse(members), [chip().root], NOW),
    )


@pytest.mark.parametrize("name", ["vcek", "ask", "crl", "report"])
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_no_byte_can_be_altered(name: str, bit: int) -> None:
    one = chip()
    parts = {"vcek": one.vcek(), "ask": one.ask(), "ark": one.root, "crl": one.crl(), "report": _report()}

    def verify() -> None:
        certificates = {part: der for part, der in parts.items() if part != "report"}
        verification.verify(parts["report"], one.endorsement(**certificates), [one.root], NOW)

    verify()
    genuine = parts[name]
    for at in range(len(genuine)):
        parts[name] = genuine[:at] + bytes((genuine[at] ^ bit,)) + genuine[at + 1 :]
        with pytest.raises(MeshError):
            verify()


@_BOUND
@given(st.integers(0, 3000), st.text(max_size=6) | st.sampled_from(["\n", "A", "=", "-----"]))
def test_altered_chain(position: int, patch: str) -> None:
    chain = _members()["chain"]
    at = position % len(chain)
    members = _members() | {"chain": chain[:at] + patch + chain[at + len(patch) :]}
    _only_mesh_errors(
        lambda: verification.verify(_report(), SnpEndorsement.parse(members), [chip().root], NOW),
    )
