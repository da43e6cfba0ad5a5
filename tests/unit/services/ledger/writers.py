"""Issuers with genuine evidence, and what else admission needs around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.batches import encode_batch, parse_batch
from libs.events.consume import StreamMessage
from libs.events.issuer import Issuer, Sealed
from libs.events.keyset import Keyset, PreviousIssuer
from libs.events.vault import VaultKey
from libs.identity.certificate import Subject
from libs.policy.document import Policy
from libs.policy.signatures import parse_signed
from libs.tee.challenge import Challenge
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from services.devtee.machine import VirtualTd
from services.ledger.intake.admission import Admission, Judged, LogView
from services.ledger.intake.issuers import Writer, nobody
from services.ledger.intake.policies import LoggedPolicies
from services.ledger.intake.sequencer import Candidate
from services.ledger.keys import ReleasedKey
from services.ledger.storage.description import LogDescription
from services.ledger.vaults.erasures import Erasures
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore

TENANT = "ef" * 16
VAULT = VaultKey(b"\x09" * 16, 671, b"\x02" * 32, TENANT)
LOG_ORIGIN = f"{TRUST_DOMAIN}/ledger/1"


class LogWriter:
    """A service that has joined and writes to the log."""

    def __init__(
        self,
        mesh: JoinedMesh,
        kms: KmsCore,
        role: str,
        *,
        instance: str = "1",
        claims: Mapping[str, Any] | None = None,
        td: VirtualTd | None = None,
        previous: PreviousIssuer | None = None,
    ) -> None:
        self.issuer = Issuer(Ed25519PrivateKey.generate())
        said = {"log_key": self.issuer.log_key.hex()} if claims is None else claims
        self.keyset = self.attested(mesh, kms, role, said, instance=instance, td=td, previous=previous)

    def attested(
        self,
        mesh: JoinedMesh,
        kms: KmsCore,
        role: str,
        said: Mapping[str, Any],
        *,
        instance: str = "1",
        td: VirtualTd | None = None,
        previous: PreviousIssuer | None = None,
    ) -> Keyset:
        """Return a keyset of this issuer with evidence made now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = int(time.time())
        challenge = Challenge.signed("kms/1", "issuance", now, kms.ca.key, kms.ca.certificate)
        evidence = mesh.evidence(role, challenge, key, td=td, claims=said)
        subject = Subject(TRUST_DOMAIN, role, instance, evidence.digest)
        certificate = kms.ca.issue_svid(subject, key.public_key(), now)
        return Keyset(self.issuer.spki, self.issuer.boot, certificate, evidence.document, None, previous)

    def introduce(self) -> Sealed:
        return self.issuer.seal(Kind.KEYSET, self.keyset.body(), None)

    def seal(self, kind: Kind, body: Mapping[str, Any] | None = None, vault: VaultKey | None = None) -> Sealed:
        return self.issuer.seal(kind, body or {"n": 1}, vault)

    def batch(self, *sealed: Sealed, key: Ed25519PrivateKey | None = None) -> bytes:
        records = [each.record for each in sealed]
        return encode_batch(self.issuer.id, sealed[0].issuer_seq, records, key or self.issuer.key)


@dataclass(slots=True)
class Gatekeeper:
    """Admission over a log that holds what it admitted."""

    admission: Admission
    logged: dict[bytes, Candidate] = field(default_factory=dict)
    highest: dict[bytes, int] = field(default_factory=dict)
    sequence: int = 0

    def judge(self, data: bytes, *, later_seconds: float = 0.0, opens: Set[int] = frozenset()) -> Judged:
        """Judge a message and log what passes."""
        self.sequence += 1
        message = StreamMessage(self.sequence, data, int((time.time() + later_seconds) * 1000))
        judged = self.admission.judge(message, parse_batch(data), {(VAULT.vault_id, VAULT.epoch): VAULT}, opens)
        for candidate in judged.candidates:
            self.logged[candidate.entry_id] = candidate
            self.highest[candidate.issuer] = max(self.highest.get(candidate.issuer, 0), candidate.issuer_seq)
        return judged

    def reasons(self, data: bytes, *, later_seconds: float = 0.0) -> list[str]:
        """Judge a message and return the names of the reasons for which records are refused."""
        return [refusal.reason.name for refusal in self.judge(data, later_seconds=later_seconds).refusals]


def describe_log(mesh: JoinedMesh, seed: bytes | None = None) -> LogDescription:
    policy: Policy = parse_signed(seed or mesh.seed).policy
    anchors = mesh.anchors("ledger")
    return LogDescription(LOG_ORIGIN, "LEDGER_1", policy.digest, anchors.operator_keys, anchors.operator_threshold)


def gatekeeper(mesh: JoinedMesh, kms: KmsCore, writer: Callable[[bytes], Writer | None] = nobody) -> Gatekeeper:
    policies = LoggedPolicies(describe_log(mesh))
    policies.offer_seed(mesh.seed)
    logged: dict[bytes, Candidate] = {}
    highest: dict[bytes, int] = {}
    view = LogView(
        is_logged=lambda issuer, number: entry_id(issuer, number) in logged,
        highest=lambda issuer: highest.get(issuer, 0),
        writer=writer,
    )
    return Gatekeeper(Admission(policies, view, kms.ca.certificate, Erasures()), logged, highest)


class Keys:
    """A KMS that releases everything, or whose author wants it away."""

    def __init__(self, fail: Callable[[str], None] = lambda name: None) -> None:
        self.fail = fail
        self.asked: list[tuple[str, int]] = []
        self.retired: list[bytes] = []
        self.forgotten: list[str] = []

    async def release(self, name: str, epoch: int = 0) -> ReleasedKey:
        self.asked.append((name, epoch))
        self.fail(name)
        return ReleasedKey(epoch or 1, sha256(f"{name} {epoch or 1}".encode()).digest())

    def forget(self, name: str) -> None:
        self.forgotten.append(name)

    async def retire(self, signed_order: bytes) -> None:
        self.fail("retire")
        self.retired.append(signed_order)
