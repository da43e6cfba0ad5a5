"""Responsible for the signature with which a job's log key stands behind a stage, at one place of its own sequence.

The batch in which the ledger gets an entry is signed by the same key, but nobody keeps batches: without a signature in
the body, that the job wrote a stage would be the word of whoever admits entries. Signed is the whole entry but for the
signature, so it holds for no other number, issuer or predecessor: "teemesh/stage/v1", a zero byte, and the SHA-256 of
the entry's canonical JSON (RFC 8785), by Ed25519 (RFC 8032).
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.errors import Code, MeshError
from libs.events.pipeline import SIGNATURE, Stage, parse_stage
from libs.events.records import Entry
from libs.transparency.chain import domain

_CONTEXT = domain("stage")


class StageNotSigned(MeshError):
    """The stage is of a version before there were signatures: that its job wrote it is the ledger's word alone."""

    code = Code.PERMISSION_DENIED
    reason = "STAGE_NOT_SIGNED"


class StageSignatureInvalid(MeshError):
    """The job's log key did not sign this stage in this place."""

    code = Code.PERMISSION_DENIED
    reason = "STAGE_SIGNATURE_INVALID"


def sign_stage(entry: Entry, key: Ed25519PrivateKey) -> Entry:
    """Return an entry of kind PIPELINE with its signature, which nothing of it may change any more."""
    return replace(entry, body={**entry.body, SIGNATURE: key.sign(_signed(entry)).hex()})


def verify_stage(entry: Entry, key: Ed25519PublicKey) -> Stage:
    """Return the stage that an entry of kind PIPELINE is, if this log key signed it.

    That the key is the one that the issuer's evidence names is for the caller to know. Raises `StageMalformed`,
    `StageNotSigned`, `StageSignatureInvalid`.
    """
    stage = parse_stage(entry.body)
    if SIGNATURE not in entry.body:
        raise StageNotSigned("its job did not sign the stage: have a job of this version run it again")
    try:
        key.verify(bytes.fromhex(entry.body[SIGNATURE]), _signed(entry))
    except InvalidSignature as error:
        raise StageSignatureInvalid("the signature is by another key, or over another stage, place or run") from error
    return stage


def _signed(entry: Entry) -> bytes:
    unsigned = {name: value for name, value in entry.body.items() if name != SIGNATURE}
    return _CONTEXT + sha256(replace(entry, body=unsigned).canonical()).digest()
