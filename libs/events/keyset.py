"""Responsible for the entry with which every issuer begins: which key writes, and what attests it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.transparency.chain import BOOT_SIZE, issuer_id

_MEMBERS = frozenset({"spki", "boot", "certificate", "evidence", "report", "previous"})
_PREVIOUS_MEMBERS = frozenset({"issuer", "last_seq"})


class KeysetMalformed(MeshError):
    """The body is not a keyset entry's."""

    code = Code.INVALID_ARGUMENT
    reason = "KEYSET_MALFORMED"


@dataclass(frozen=True, slots=True)
class PreviousIssuer:
    """The same service's sequence before its restart, which the new one closes."""

    issuer: bytes
    last_seq: int


@dataclass(frozen=True, slots=True)
class Keyset:
    """The body of an issuer's entry 1, and of those that renew it. What it claims holds only once the evidence is
    appraised.
    """

    spki: bytes
    """The Ed25519 log key, DER."""
    boot: bytes
    certificate: bytes
    """The issuer's mesh certificate, DER."""
    evidence: bytes
    """The evidence document that the certificate names; its claims must name the log key."""
    report: Mapping[str, Any] | None
    """The receipt key's ACI report or keyset, where the issuer has one."""
    previous: PreviousIssuer | None

    @property
    def issuer(self) -> bytes:
        return issuer_id(self.spki, self.boot)

    def body(self) -> dict[str, Any]:
        """Return the JSON body. The evidence is a value in it, as its document is canonical JSON itself."""
        previous = self.previous
        return {
            "spki": self.spki.hex(),
            "boot": self.boot.hex(),
            "certificate": self.certificate.hex(),
            "evidence": jcs.loads_object(self.evidence),
            "report": None if self.report is None else dict(self.report),
            "previous": None if previous is None else {"issuer": previous.issuer.hex(), "last_seq": previous.last_seq},
        }


def parse_keyset(body: Mapping[str, Any]) -> Keyset:
    """Read a keyset entry's body. Raises `KeysetMalformed`."""
    if body.keys() != _MEMBERS:
        raise KeysetMalformed("a keyset has other members")
    evidence, report, previous = body["evidence"], body["report"], body["previous"]
    if not isinstance(evidence, dict) or not (report is None or isinstance(report, dict)):
        raise KeysetMalformed("evidence is an object, report one or null")
    boot = _bytes(body["boot"])
    if len(boot) != BOOT_SIZE:
        raise KeysetMalformed(f"boot has {BOOT_SIZE} bytes")
    return Keyset(
        _bytes(body["spki"]), boot, _bytes(body["certificate"]), jcs.dumps(evidence), report, _previous(previous)
    )


def _previous(value: Any) -> PreviousIssuer | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != _PREVIOUS_MEMBERS:
        raise KeysetMalformed("previous is null or an issuer with its last sequence number")
    issuer, last_seq = _bytes(value["issuer"]), value["last_seq"]
    if len(issuer) != 32 or type(last_seq) is not int or last_seq < 1:
        raise KeysetMalformed("previous names an issuer of 32 bytes and a number from 1")
    return PreviousIssuer(issuer, last_seq)


def _bytes(text: Any) -> bytes:
    try:
        value = bytes.fromhex(text)
    except (TypeError, ValueError) as error:
        raise KeysetMalformed("lower-case hex is required") from error
    if value.hex() != text:
        raise KeysetMalformed("lower-case hex is required")
    return value
