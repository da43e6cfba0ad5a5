"""It is responsible for who may write what, by the log's own word: the keyset that every issuer begins with, and those
by which it shows later keys and evidence.

A keyset's evidence is not appraised here: that a machine stands behind its claims is for policy to say. What is checked
is that name, certificate, evidence and claims are about one another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from libs.audit.log.entries import EntryWrong, PublicEntry, canonical, octets
from libs.audit.log.frames import LEDGERS_KINDS
from libs.audit.log.notes import Key
from libs.errors import Code, MeshError

KEYSET = 2
LEDGER = "ledger"
_MEMBERS = {"spki", "boot", "certificate", "evidence", "report", "previous"}
_KINDS = {
    "router": frozenset({1, KEYSET, 3, 9, 10, 13}),
    "kms": frozenset({KEYSET, 4, 5, 6, 8}),
    "registry": frozenset({KEYSET, 3, 8}),
    "job": frozenset({KEYSET, 11}),
    LEDGER: frozenset({KEYSET, 7, 12}) | LEDGERS_KINDS,
}
_SPIFFE_ID = re.compile(r"spiffe://[^/]+/([a-z]+)/[^/]+")
_EVIDENCE_DIGEST = x509.ObjectIdentifier("2.25.1477055829")
_OCTET_STRING_32 = b"\x04\x20"


class KeysetWrong(MeshError):
    """An issuer's keyset does not bear out the name that it writes under."""

    code = Code.PERMISSION_DENIED
    reason = "LOG_KEYSET_WRONG"


@dataclass(frozen=True, slots=True)
class Writer:
    """What an issuer's keyset says of it."""

    issuer: bytes
    log_key: bytes
    role: str
    spiffe_id: str
    certificate: bytes
    evidence: bytes
    previous: tuple[bytes, int] | None
    """The sequence before a restart, and its last number."""
    checkpoint_key: Key | None
    """Of a ledger's auditor."""
    ack_key: bytes | None
    """Of a ledger: what seals segments and signs acknowledgements."""

    @property
    def kinds(self) -> frozenset[int]:
        return _KINDS[self.role]


def read_keyset(entry: PublicEntry, origin: str) -> Writer:
    """Read a keyset. Raises `KeysetWrong`, or `EntryWrong` for a body of another form."""
    body = entry.body
    if body.keys() != _MEMBERS or not isinstance(body["evidence"], dict):
        raise EntryWrong("a keyset has other members")
    if entry.issuer_seq != 1 and body["previous"] is not None:
        raise EntryWrong("a keyset that is renewed closes no sequence")
    spki, boot, der = octets(body["spki"]), octets(body["boot"], 16), octets(body["certificate"])
    if sha256(b"teemesh/issuer/v1\x00" + spki + boot).digest() != entry.issuer:
        raise KeysetWrong("the issuer is named by another key or start")
    evidence = canonical(body["evidence"])
    spiffe_id, digest = _certified(der)
    match = _SPIFFE_ID.fullmatch(spiffe_id)
    if match is None or match[1] not in _KINDS:
        raise KeysetWrong(f"{spiffe_id} is none that writes to a log")
    if digest != sha256(evidence).digest():
        raise KeysetWrong("the certificate names other evidence")
    claims = body["evidence"].get("claims")
    log_key = _raw(spki)
    if not isinstance(claims, dict) or claims.get("log_key") != log_key.hex():
        raise KeysetWrong("the evidence claims another log key")
    is_ledger = match[1] == LEDGER
    return Writer(
        entry.issuer,
        log_key,
        match[1],
        spiffe_id,
        der,
        evidence,
        _previous(body["previous"]),
        Key(origin, _claimed(claims, "checkpoint_key", origin)) if is_ledger else None,
        _claimed(claims, "ack_key", origin) if is_ledger else None,
    )


def _claimed(claims: Mapping[str, Any], name: str, origin: str) -> bytes:
    if claims.get("origin") != origin:
        raise KeysetWrong("the ledger's evidence is about another log")
    try:
        return octets(claims.get(name), 32)
    except EntryWrong as error:
        raise KeysetWrong(f"the ledger's evidence claims no {name}") from error


def _certified(der: bytes) -> tuple[str, bytes]:
    """Return the SPIFFE ID that a certificate is for, and the digest of the evidence that it names."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (spiffe_id,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        extension = certificate.extensions.get_extension_for_oid(_EVIDENCE_DIGEST).value
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        raise KeysetWrong(f"the certificate cannot be read: {error}") from error
    stated = extension.public_bytes()
    return spiffe_id, stated.removeprefix(_OCTET_STRING_32)


def _raw(spki: bytes) -> bytes:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeysetWrong("the log key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeysetWrong("the log key is no Ed25519 key")
    return key.public_bytes_raw()


def _previous(value: object) -> tuple[bytes, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != {"issuer", "last_seq"}:
        raise EntryWrong("a keyset closes one issuer's sequence, or none")
    last = value["last_seq"]
    if type(last) is not int or last < 1:
        raise EntryWrong("a sequence ends with a number from 1")
    return octets(value["issuer"], 32), last
