"""It is responsible for a workload's own key pair at the KMS: asked for by name, used there or received sealed.

What the KMS signs comes with everything that anyone needs to walk from the signature to this workload's measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.audit.agent_signature import SignedMessage, verify_signature
from libs.errors import Code, MeshError
from libs.identity.any_peer import Channels
from libs.identity.certificate import spki_of_certificate
from libs.identity.renewal import Identity
from libs.identity.sealed import ReceiverKey, release_info
from libs.policy.custody import verify_key_use
from libs.policy.releases import KeyAlgorithm
from libs.rpc.deadline import outgoing_timeout
from libs.rpc.errors import remote_errors

_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Secret:
    """A symmetric key as the KMS released it."""

    material: bytes = field(repr=False)
    """32 bytes."""
    epoch: int
    """Of which epoch of the key they are."""


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key as the KMS released it."""

    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | X25519PrivateKey = field(repr=False)
    epoch: int
    """Of which epoch of the key it is: what was sealed for another does not open."""


class SignedForAnother(MeshError):
    """The KMS stated another workload, key or evidence than the one that asked."""

    code = Code.UNAUTHENTICATED
    reason = "SIGNED_FOR_ANOTHER"


class AgentKey:
    """One named key. Policy must give it to this workload's role, and to its measurement where the rule names any."""

    def __init__(self, name: str, kms: Channels, identity: Identity) -> None:
        self._name = name
        self._kms = kms
        self._identity = identity

    async def sign(self, message: bytes) -> SignedMessage:
        """Have the KMS sign with the newest epoch; the ledger holds that it was asked before the signature comes.

        It is asked once: what was not answered may have been signed, and is in the log then.

        Raises the KMS's refusals, `SignedForAnother`, `MessageSignatureInvalid`, and what verifying its statement
        raises.
        """
        channel = await self._kms.channel(outgoing_timeout(_CALL_SECONDS))
        with remote_errors():
            answer = await kms_pb2_grpc.KmsServiceStub(channel).SignWithKey(
                kms_pb2.SignWithKeyRequest(name=self._name, message=message), timeout=outgoing_timeout(_CALL_SECONDS)
            )
            theirs = await evidence_pb2_grpc.EvidenceServiceStub(channel).GetEvidence(
                evidence_pb2.GetEvidenceRequest(), timeout=outgoing_timeout(_CALL_SECONDS)
            )
        ca_certificate = self._identity.ca_certificate
        use = verify_key_use(answer.statement, answer.statement_signature, spki_of_certificate(ca_certificate))
        asked = next((held for held in self._identity.held if held.evidence.digest == use.evidence_sha256), None)
        if asked is None or (use.name, use.spiffe_id) != (self._name, asked.certificate.spiffe_id):
            raise SignedForAnother(f"the KMS says that {use.spiffe_id} had {use.name} sign")
        verify_signature(answer.signature, message, use)
        return SignedMessage(
            signature=answer.signature,
            statement=answer.statement,
            statement_signature=answer.statement_signature,
            ca_certificate=ca_certificate,
            kms_evidence=theirs.document,
            evidence=asked.evidence.document,
        )

    async def receive(
        self, algorithm: KeyAlgorithm, receiver: ReceiverKey, epoch: int = 0
    ) -> Ed25519PrivateKey | ec.EllipticCurvePrivateKey | X25519PrivateKey:
        """Return the private key itself, 0 being the newest epoch; this workload's evidence must bind `receiver`.

        Raises the KMS's refusals and `SealedKeyRefused`.
        """
        return (await self.receive_epoch(algorithm, receiver, epoch)).key

    async def receive_epoch(self, algorithm: KeyAlgorithm, receiver: ReceiverKey, epoch: int = 0) -> PrivateKey:
        """Return what `receive` does, and which epoch it is. Raises what that raises."""
        released = await self._released(algorithm, receiver, epoch)
        material = released.material
        match algorithm:
            case KeyAlgorithm.ED25519:
                return PrivateKey(Ed25519PrivateKey.from_private_bytes(material), released.epoch)
            case KeyAlgorithm.X25519:
                return PrivateKey(X25519PrivateKey.from_private_bytes(material), released.epoch)
            case KeyAlgorithm.P_256:
                scalar = int.from_bytes(material, "big")
                return PrivateKey(ec.derive_private_key(scalar, ec.SECP256R1()), released.epoch)
            case KeyAlgorithm.AES_256:
                raise ValueError("a symmetric key is a secret: see receive_secret")

    async def receive_secret(self, receiver: ReceiverKey, epoch: int = 0) -> Secret:
        """Return a symmetric key, as `receive` does a private one. Raises what that raises."""
        return await self._released(KeyAlgorithm.AES_256, receiver, epoch)

    async def _released(self, algorithm: KeyAlgorithm, receiver: ReceiverKey, epoch: int) -> Secret:
        channel = await self._kms.channel(outgoing_timeout(_CALL_SECONDS))
        request = kms_pb2.ReleaseKeyRequest(
            name=self._name, epoch=epoch, algorithm=kms_pb2.KeyAlgorithm.ValueType(algorithm.number)
        )
        with remote_errors():
            answer = await kms_pb2_grpc.KmsServiceStub(channel).ReleaseKey(
                request, timeout=outgoing_timeout(_CALL_SECONDS)
            )
        spiffe_id = self._identity.current.certificate.spiffe_id
        released = epoch or answer.epoch
        info = release_info(self._name, released, spiffe_id, algorithm)
        return Secret(receiver.open(answer.sealed_key, info), released)
