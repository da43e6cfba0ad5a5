"""Responsible for the record of an appraisal: what was asked, of which evidence and policy, and what came out.

A record beside the two documents that it names is a bundle, which is all that repeating the appraisal needs. Repeating
it takes a policy's rules, so that is done above this library, by `libs.audit.repetition`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.appraisal import AppraisalContext, OwnNonce, SignedBy
from libs.tee.evidence import MAX_DOCUMENT_BYTES

_VERSION = 1
_DIGEST_BYTES = 32
_NONCE_BYTES = 32
_MAX_ROLE = 20
_MAX_REASON = 64
_MAX_DETAIL = 4096
_MAX_SPKI_BYTES = 4096
_LAST_STEP = 11
MAX_RECORD_BYTES = MAX_DOCUMENT_BYTES + 64 * 1024
"""An accepted record repeats the claims of its evidence, which may fill the document."""

MAX_BUNDLE_BYTES = 4 * 1024 * 1024 - 4096
"""So that a bundle travels in one message."""

_RECORD_MEMBERS = frozenset({"v", "evidence", "policy", "role", "now", "spki", "challenge", "outcome"})
_BUNDLE_MEMBERS = frozenset({"v", "record", "evidence", "policy"})
_REFUSED_MEMBERS = frozenset({"reason", "detail", "step"})
_SIGNED_MEMBERS = frozenset({"signed_by", "max_age_seconds"})


class ArchiveMalformed(MeshError):
    """Not a record or bundle of an appraisal, or one whose documents are not those that it names."""

    code = Code.INVALID_ARGUMENT
    reason = "ARCHIVE_MALFORMED"


@dataclass(frozen=True, slots=True)
class Question:
    """What an appraisal is asked, beside evidence and policy."""

    role: str
    # Unix seconds.
    now: int
    # SubjectPublicKeyInfo, DER, of the key that must be proved, or None.
    spki: bytes | None
    challenge: OwnNonce | SignedBy

    def context(self, policy_version: int) -> AppraisalContext:
        return AppraisalContext(self.now, self.spki, self.challenge, policy_version)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The verdict, as `Appraisal.to_json` writes it."""

    appraisal: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """The step that refused, why, and in which words."""

    reason: str
    detail: str
    step: int

    @classmethod
    def by(cls, refusal: MeshError, step: int) -> Refused:
        """What is left of a refusal once it is written down: its words are cut where they are many."""
        detail = str(refusal)[:_MAX_DETAIL].encode("utf-8", "replace").decode()
        return cls(refusal.reason, detail, step)


@dataclass(frozen=True, slots=True)
class AppraisalRecord:
    """One appraisal. Its digest names it."""

    # SHA-256 of the evidence document and of the canonical policy document.
    evidence: bytes
    policy: bytes
    question: Question
    outcome: Accepted | Refused

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.encode()).digest()

    def to_json(self) -> dict[str, Any]:
        question, outcome = self.question, self.outcome
        return {
            "v": _VERSION,
            "evidence": self.evidence.hex(),
            "policy": self.policy.hex(),
            "role": question.role,
            "now": question.now,
            "spki": None if question.spki is None else question.spki.hex(),
            "challenge": _challenge_json(question.challenge),
            "outcome": (
                {"appraisal": dict(outcome.appraisal)}
                if isinstance(outcome, Accepted)
                else {"refused": {"reason": outcome.reason, "detail": outcome.detail, "step": outcome.step}}
            ),
        }

    def encode(self) -> bytes:
        """Canonical JSON, the one byte form of a record."""
        return jcs.dumps(self.to_json())

    @classmethod
    def decode(cls, data: bytes) -> AppraisalRecord:
        """Read a record. Raises `ArchiveMalformed`; proves nothing."""
        return cls._parse(_canonical(data, MAX_RECORD_BYTES))

    @classmethod
    def _parse(cls, value: Any) -> AppraisalRecord:
        try:
            return cls._read(value)
        except ValueError as error:
            raise ArchiveMalformed(str(error)) from error

    @classmethod
    def _read(cls, value: Any) -> AppraisalRecord:
        fields = shape.members(value, _RECORD_MEMBERS, "record")
        _check_version(fields["v"])
        spki = None if fields["spki"] is None else shape.binary(fields["spki"], "spki")
        if spki is not None and not 0 < len(spki) <= _MAX_SPKI_BYTES:
            raise ValueError(f"spki has {len(spki)} bytes")
        return cls(
            evidence=shape.binary(fields["evidence"], "evidence", _DIGEST_BYTES),
            policy=shape.binary(fields["policy"], "policy", _DIGEST_BYTES),
            question=Question(
                role=_words(fields["role"], "role", _MAX_ROLE),
                now=shape.integer(fields["now"], "now"),
                spki=spki,
                challenge=_read_challenge(fields["challenge"]),
            ),
            outcome=_read_outcome(fields["outcome"]),
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """A record with the two documents that it names. Build with `of` or `decode`, which compare their digests."""

    record: AppraisalRecord
    evidence: bytes
    # The canonical policy document, as it was signed.
    policy: bytes

    @classmethod
    def of(cls, record: AppraisalRecord, evidence: bytes, policy: bytes) -> Bundle:
        """Raises `ArchiveMalformed` when a document is not the one that the record names."""
        for what, document, named in (("evidence", evidence, record.evidence), ("policy", policy, record.policy)):
            if hashlib.sha256(document).digest() != named:
                raise ArchiveMalformed(f"the {what} is not the one that the record names")
        return cls(record, evidence, policy)

    def encode(self) -> bytes:
        """Raises `ArchiveMalformed` for documents that are no text, or too long together."""
        try:
            texts = {"evidence": self.evidence.decode(), "policy": self.policy.decode()}
        except UnicodeDecodeError as error:
            raise ArchiveMalformed("a document is not text") from error
        data = jcs.dumps({"v": _VERSION, "record": self.record.to_json(), **texts})
        if len(data) > MAX_BUNDLE_BYTES:
            raise ArchiveMalformed(f"the bundle has {len(data)} bytes, at most {MAX_BUNDLE_BYTES} travel")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Bundle:
        """Read a bundle. Raises `ArchiveMalformed`; proves nothing but that its parts belong together."""
        value = _canonical(data, MAX_BUNDLE_BYTES)
        try:
            fields = shape.members(value, _BUNDLE_MEMBERS, "bundle")
            _check_version(fields["v"])
            evidence = shape.text(fields["evidence"], "evidence").encode()
            policy = shape.text(fields["policy"], "policy").encode()
        except ValueError as error:
            raise ArchiveMalformed(str(error)) from error
        return cls.of(AppraisalRecord._parse(fields["record"]), evidence, policy)


def _canonical(data: bytes, most: int) -> Any:
    if len(data) > most:
        raise ArchiveMalformed(f"{len(data)} bytes, at most {most} are read")
    try:
        value = jcs.loads_object(data)
        canonical = jcs.dumps_parsed(value) == data
    except (jcs.JsonMalformed, ValueError) as error:
        raise ArchiveMalformed(f"not a record or bundle: {error}") from error
    if not canonical:
        raise ArchiveMalformed("not canonical JSON (RFC 8785)")
    return value


def _check_version(value: Any) -> None:
    if value != _VERSION or isinstance(value, bool):
        raise ValueError("the record is of another version")


def _challenge_json(challenge: OwnNonce | SignedBy) -> dict[str, Any]:
    if isinstance(challenge, OwnNonce):
        return {"own_nonce": challenge.nonce.hex()}
    return {"signed_by": challenge.ca_spki_der.hex(), "max_age_seconds": challenge.max_age_seconds}


def _read_challenge(value: Any) -> OwnNonce | SignedBy:
    if isinstance(value, dict) and "own_nonce" in value:
        fields = shape.members(value, frozenset({"own_nonce"}), "challenge")
        return OwnNonce(shape.binary(fields["own_nonce"], "own_nonce", _NONCE_BYTES))
    fields = shape.members(value, _SIGNED_MEMBERS, "challenge")
    signed_by = shape.binary(fields["signed_by"], "signed_by")
    if not 0 < len(signed_by) <= _MAX_SPKI_BYTES:
        raise ValueError(f"signed_by has {len(signed_by)} bytes")
    return SignedBy(signed_by, shape.integer(fields["max_age_seconds"], "max_age_seconds"))


def _read_outcome(value: Any) -> Accepted | Refused:
    if isinstance(value, dict) and "appraisal" in value:
        appraisal = shape.members(value, frozenset({"appraisal"}), "outcome")["appraisal"]
        if not isinstance(appraisal, dict):
            raise ValueError("appraisal must be an object")
        return Accepted(appraisal)
    refused = shape.members(value, frozenset({"refused"}), "outcome")["refused"]
    fields = shape.members(refused, _REFUSED_MEMBERS, "refused")
    step = shape.integer(fields["step"], "step", _LAST_STEP)
    if step == 0:
        raise ValueError("steps are numbered from 1")
    detail = shape.text(fields["detail"], "detail")
    if len(detail) > _MAX_DETAIL:
        raise ValueError("detail is too long")
    return Refused(_words(fields["reason"], "reason", _MAX_REASON), detail, step)


def _words(value: Any, what: str, most: int) -> str:
    text = shape.text(value, what)
    if not 0 < len(text) <= most:
        raise ValueError(f"{what} has 1 to {most} characters")
    return text
