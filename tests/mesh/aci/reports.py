"""A report as it was asked for and served, with the key of the connection that it came over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.mesh.aci import reader
from tests.mesh.aci.quote import Quote
from tests.mesh.aci.wire import ATTESTATION, Answer, Router


@dataclass(frozen=True, slots=True)
class Challenge:
    """`spki_sha256` is that of the server's key on this connection, `certificate_sha256` of its certificate."""

    nonce: str | None
    answer: Answer
    report: dict[str, Any]
    spki_sha256: str
    certificate: bytes
    host: str
    """The one that was asked."""

    @property
    def attestation(self) -> dict[str, Any]:
        members: dict[str, Any] = self.report["attestation"]
        return members

    @property
    def keyset(self) -> dict[str, Any]:
        members: dict[str, Any] = self.attestation["workload_keyset"]
        return members

    @property
    def evidence(self) -> dict[str, Any]:
        members: dict[str, Any] = self.attestation["evidence"]
        return members

    @property
    def events(self) -> list[dict[str, Any]]:
        """The boot log, which is JSON within a text."""
        events: list[dict[str, Any]] = reader.parse(self.evidence["event_log"].encode())
        return events

    @property
    def quote(self) -> Quote:
        return Quote(bytes.fromhex(self.evidence["quote"]))


def challenge(router: Router, nonce: str | None) -> Challenge:
    """Ask for a report; it must be there."""
    path = ATTESTATION if nonce is None else f"{ATTESTATION}?nonce={nonce}"
    with router.connected() as conversation:
        answer = conversation.send("GET", path)
        assert answer.status == 200
        return Challenge(
            nonce, answer, reader.parse(answer.body), conversation.spki_sha256, conversation.certificate, router.host
        )
