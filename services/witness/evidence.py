"""It is responsible for a log's next checkpoint key: believed on the ledger's evidence, under its operators' policy.

A ledger's checkpoint key is born with its process. Its evidence names the origin, the acknowledgement key and the
checkpoint key; the policy says which code may be a ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from libs.client.commitment import LedgerName
from libs.client.ledger import verify_ledger
from libs.errors import Code, MeshError
from libs.identity import certificate as certificates
from libs.identity.freshness import PolicyKeeper, load_keeper
from libs.identity.revoked import verify_not_revoked
from libs.policy.compose import Anchors
from libs.policy.signatures import parse_signed
from libs.policy.succession import verify_valid_at
from libs.transparency.add_checkpoint import AddKey
from libs.transparency.note import VerifierKey
from services.witness.config import AttestedSettings

_ROLE = "witness"


class MeshCaOfAnotherMesh(MeshError):
    """The evidence is dated by another mesh CA than the one that this witness was told."""

    code = Code.PERMISSION_DENIED
    reason = "MESH_CA_OF_ANOTHER_MESH"


class MeshCaUnreadable(MeshError):
    """The configured certificate of the mesh CA cannot be read."""

    code = Code.INVALID_ARGUMENT
    reason = "MESH_CA_UNREADABLE"


class KeyEvidence:
    """Judges the keys of one log. Its policy only goes forward, and is kept."""

    def __init__(
        self, folder: Path, origin: str, settings: AttestedSettings, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises what the policy, or what is kept of it, is refused with."""
        keys = tuple(bytes.fromhex(key) for key in settings.operator_keys)
        anchors = Anchors(_ROLE, settings.trust_domain, keys, settings.operator_threshold)
        kept = folder / "logs" / sha256(origin.encode()).hexdigest()[:16]
        self._policy: PolicyKeeper = load_keeper(kept, settings.seed_policy, anchors)
        self._mesh_ca = None if settings.mesh_ca is None else _read_spki(settings.mesh_ca)
        self._origin = origin
        self._clock = clock

    def verify(self, submission: AddKey) -> VerifierKey:
        """Return the checkpoint key that the ledger's evidence names.

        Takes newer versions and revocations that come with it, which operators signed, whether or not the rest holds.
        Raises `MeshCaOfAnotherMesh` and what policy, certificate or evidence is refused with.
        """
        for signed in submission.policies:
            if parse_signed(signed).policy.version > self._policy.current.version:
                self._policy.accept(signed)
        self._policy.accept_revocations(submission.revocations)
        policy, now = self._policy.current, self._clock()
        verify_valid_at(policy, now)
        ca_spki = certificates.spki_of_certificate(submission.mesh_ca)
        if self._mesh_ca not in (None, ca_spki):
            raise MeshCaOfAnotherMesh("the evidence is dated by another mesh CA than the configured one")
        evidence_sha256 = sha256(submission.evidence).hexdigest()
        ledger = LedgerName(submission.certificate, evidence_sha256, self._origin)
        keys = verify_ledger(ledger, submission.mesh_ca, submission.evidence, policy, ca_spki, int(now))
        certificate = certificates.parse(submission.certificate)
        verify_not_revoked(certificate.spki_sha256, certificate.spiffe_id, policy)
        return keys.checkpoint


def _read_spki(path: Path) -> bytes:
    try:
        return certificates.spki_of_certificate(certificates.der_of(path.read_bytes()))
    except OSError as error:
        raise MeshCaUnreadable(f"cannot read {path}: {error.strerror}") from error
