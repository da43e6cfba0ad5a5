"""A router of a joined mesh with a certificate and the evidence that it was given for."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from libs.identity.certificate import MeshCertificate, Subject, parse
from libs.tee.evidence import Evidence
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore


class CertifiedRouter:
    """A certified router that has not presented itself yet."""

    def __init__(self, mesh: JoinedMesh, kms: KmsCore, clock: Callable[[], float], instance: str = "1") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.evidence: Evidence = mesh.evidence("router", kms.challenges.issue("certificate"), self.key)
        subject = Subject(TRUST_DOMAIN, "router", instance, self.evidence.digest)
        self.certificate: MeshCertificate = parse(kms.ca.issue_svid(subject, self.key.public_key(), clock()))
