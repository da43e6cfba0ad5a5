"""Records and bundles: one byte form, and nothing that was put together from other parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import archived
from libs.tee.appraisal import OwnNonce, SignedBy
from libs.tee.archived import Accepted, AppraisalRecord, ArchiveMalformed, Bundle, Question, Refused

EVIDENCE, POLICY = b'{"evidence":1}', b'{"policy":1}'


class Unusual(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "UNUSUAL"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def record(**changes: Any) -> AppraisalRecord:
    question = Question("node", 1_790_000_000, b"spki", SignedBy(b"ca", 300))
    given = AppraisalRecord(sha256(EVIDENCE), sha256(POLICY), question, Refused("DEBUG_TD", "a debug TD", 4))
    return replace(given, **changes)


@pytest.mark.parametrize(
    "written",
    [
        record(),
        record(outcome=Accepted({"role": "node"})),
        record(question=Question("kms", 0, None, OwnNonce(bytes(32)))),
        record(outcome=Refused.by(Unusual("\ud800" * 5000), 11)),
    ],
)
def test_a_record_is_read_back(written: AppraisalRecord) -> None:
    assert AppraisalRecord.decode(written.encode()) == written
    assert written.digest == sha256(written.encode())


def test_a_bundle_is_read_back() -> None:
    bundle = Bundle.of(record(), EVIDENCE, POLICY)
    assert Bundle.decode(bundle.encode()) == bundle


@pytest.mark.parametrize(("evidence", "policy"), [(EVIDENCE + b" ", POLICY), (EVIDENCE, POLICY + b" ")])
def test_other_documents_than_the_record_names_are_refused(evidence: bytes, policy: bytes) -> None:
    with pytest.raises(ArchiveMalformed, match="names"):
        Bundle.of(record(), evidence, policy)
    whole = jcs.loads_object(Bundle.of(record(), EVIDENCE, POLICY).encode())
    swapped = jcs.dumps({**whole, "evidence": evidence.decode(), "policy": policy.decode()})
    with pytest.raises(ArchiveMalformed, match="names"):
        Bundle.decode(swapped)


def test_what_is_no_text_or_too_long_makes_no_bundle() -> None:
    with pytest.raises(ArchiveMalformed, match="not text"):
        Bundle.of(record(evidence=sha256(b"\xff")), b"\xff", POLICY).encode()
    long = b"x" * archived.MAX_BUNDLE_BYTES
    with pytest.raises(ArchiveMalformed, match="travel"):
        Bundle.of(record(evidence=sha256(long)), long, POLICY).encode()


def test_what_is_longer_than_any_record_or_bundle_is_not_read() -> None:
    with pytest.raises(ArchiveMalformed, match="at most"):
        AppraisalRecord.decode(record(outcome=Accepted({"x": "y" * archived.MAX_RECORD_BYTES})).encode())
    long = jcs.dumps(
        {"v": 1, "record": record().to_json(), "evidence": "x" * archived.MAX_BUNDLE_BYTES, "policy": POLICY.decode()}
    )
    with pytest.raises(ArchiveMalformed, match="at most"):
        Bundle.decode(long)


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda value: value.update(v=2),
    lambda value: value.update(v=True),
    lambda value: value.update(more=1),
    lambda value: value.pop("now"),
    lambda value: value.update(evidence="00"),
    lambda value: value.update(policy="zz" * 32),
    lambda value: value.update(role=""),
    lambda value: value.update(role="x" * 21),
    lambda value: value.update(now=-1),
    lambda value: value.update(spki=""),
    lambda value: value.update(spki="00" * 5000),
    lambda value: value.update(challenge={}),
    lambda value: value.update(challenge={"own_nonce": "00"}),
    lambda value: value.update(challenge={"own_nonce": "00" * 32, "max_age_seconds": 1}),
    lambda value: value["challenge"].update(signed_by=""),
    lambda value: value["challenge"].update(max_age_seconds=-1),
    lambda value: value.update(outcome={}),
    lambda value: value.update(outcome={"appraisal": []}),
    lambda value: value.update(outcome={"appraisal": {}, "refused": {}}),
    lambda value: value["outcome"]["refused"].update(step=0),
    lambda value: value["outcome"]["refused"].update(step=12),
    lambda value: value["outcome"]["refused"].update(reason=""),
    lambda value: value["outcome"]["refused"].update(detail="x" * 5000),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_of_another_form_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    value = record().to_json()
    change(value)
    with pytest.raises(ArchiveMalformed):
        AppraisalRecord.decode(jcs.dumps(value))
    bundle = {"v": 1, "record": value, "evidence": EVIDENCE.decode(), "policy": POLICY.decode()}
    with pytest.raises(ArchiveMalformed):
        Bundle.decode(jcs.dumps(bundle))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        json.dumps(record().to_json()).encode(),
        b" " * (archived.MAX_RECORD_BYTES + 1),
    ],
)
def test_what_is_no_canonical_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ArchiveMalformed):
        AppraisalRecord.decode(data)
    with pytest.raises(ArchiveMalformed):
        Bundle.decode(data)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_hostile_bytes_raise_only_the_readers_error(noise: bytes, place: int) -> None:
    whole = Bundle.of(record(), EVIDENCE, POLICY).encode()
    for data in (noise, whole[:place] + noise + whole[place + 1 :]):
        # Some changes leave a record that says something else, which only repeating it finds out.
        with suppress(ArchiveMalformed):
            Bundle.decode(data)
