"""A stage's signature holds for one stage, in one place of one sequence; everything else is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.errors import MeshError
from libs.events.issuer import Issuer
from libs.events.pipeline import Artifact, Stage, Step
from libs.events.records import Entry, parse_entry
from libs.events.stage_signature import sign_stage, verify_stage
from libs.transparency.leaf import Kind
from tests.fakes.entry_schema import require_documented

STAGE = Stage(Step.TRAINING, "first", (), (Artifact("weights", b"\x01" * 32),), b"\x05" * 32, 1_000, 2_000)
OTHER = replace(STAGE, name="second")
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


def sealed(issuer: Issuer, stage: Stage = STAGE) -> Entry:
    """The next entry of an issuer, as the log has it."""
    return parse_entry(issuer.seal(Kind.PIPELINE, stage.body(), None).canonical)


@pytest.fixture
def job() -> Issuer:
    return Issuer(KEY)


def reason(entry: Entry) -> str:
    with pytest.raises(MeshError) as refused:
        verify_stage(entry, KEY.public_key())
    return refused.value.reason


def test_what_an_issuer_seals_is_signed_by_its_log_key(job: Issuer) -> None:
    for stage in (STAGE, OTHER):
        entry = sealed(job, stage)
        require_documented(Kind.PIPELINE, entry.body)
        assert verify_stage(entry, KEY.public_key()) == stage


def test_the_signature_is_what_the_documentation_says(job: Issuer) -> None:
    """Made here by hand, from the words of docs/entry.schema.json."""
    canonical = sealed(job).canonical()
    value = jcs.loads_object(canonical)
    signature = value["body"].pop("signature")
    assert KEY.sign(b"teemesh/stage/v1\0" + sha256(jcs.dumps(value)).digest()).hex() == signature


def test_a_stage_that_is_not_signed_is_refused_for_that(job: Issuer) -> None:
    unsigned = {name: value for name, value in sealed(job).body.items() if name != "signature"}
    assert reason(replace(sealed(job), body={**unsigned, "v": 1})) == "STAGE_NOT_SIGNED"
    assert reason(replace(sealed(job), body=unsigned)) == "STAGE_MALFORMED"


def test_another_keys_signature_is_refused(job: Issuer) -> None:
    other = sign_stage(replace(sealed(job), body=STAGE.body()), Ed25519PrivateKey.generate())
    assert reason(other) == "STAGE_SIGNATURE_INVALID"


@pytest.mark.parametrize(
    "member", [*(name for name in STAGE.body() if name not in ("v", "stage", "inputs", "outputs")), "signature"]
)
def test_an_edited_stage_is_refused(job: Issuer, member: str) -> None:
    edits: dict[str, Any] = {"name": "x", "parameters_sha256": "00" * 32, "began_ms": 1, "ended_ms": 2_001}
    entry = sealed(job)
    edited = edits.get(member, "00" * 64)
    assert reason(replace(entry, body={**entry.body, member: edited})) == "STAGE_SIGNATURE_INVALID"


MOVES: dict[str, Callable[[Entry], Entry]] = {
    "another number": lambda entry: replace(entry, issuer_seq=entry.issuer_seq + 1),
    "another run of the key": lambda entry: replace(entry, issuer=Issuer(KEY).id),
    "another predecessor": lambda entry: replace(entry, previous=b"\x09" * 32),
    "another stage": lambda entry: replace(entry, body={**OTHER.body(), "signature": entry.body["signature"]}),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_signature_that_was_moved_is_refused(job: Issuer, move: str) -> None:
    assert reason(MOVES[move](sealed(job))) == "STAGE_SIGNATURE_INVALID"


@pytest.mark.parametrize("context", [b"", b"teemesh/batch/v1\0", b"teemesh/stage/v2\0", b"teemesh/stage/v1"])
def test_a_signature_of_another_context_is_refused(job: Issuer, context: bytes) -> None:
    """The log key signs batches too: what it signed for one use must not serve another."""
    unsigned = replace(sealed(job), body=STAGE.body())
    signature = KEY.sign(context + sha256(unsigned.canonical()).digest()).hex()
    assert reason(replace(unsigned, body={**STAGE.body(), "signature": signature})) == "STAGE_SIGNATURE_INVALID"


def test_an_issuer_signs_anew_what_came_signed(job: Issuer) -> None:
    foreign = sealed(Issuer(Ed25519PrivateKey.generate()))
    again = parse_entry(job.seal(Kind.PIPELINE, foreign.body, None).canonical)
    assert verify_stage(again, KEY.public_key()) == STAGE
