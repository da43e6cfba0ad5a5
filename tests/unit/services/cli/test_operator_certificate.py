"""What an operator keeps of what a KMS answers: a certificate for the operator's own key and name, or nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from libs.errors import MeshError
from libs.identity.certificate import PEOPLE, Subject, der_of, verify_issued
from libs.policy.operator_request import OperatorRequest
from services.cli.mesh.layout import Layout
from services.cli.mesh.operator_certificate import obtain_certificate
from services.kms.ca import CertificateAuthority, public_key_of
from services.kms.issuance import Issuance
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.running_kms import bootstrap_listener

__all__ = ["kms", "machine", "mesh"]

STRANGER = ec.generate_private_key(ec.SECP256R1()).public_key()


@dataclass(frozen=True, slots=True)
class Lie:
    """What a KMS of the right code certifies wrongly, of its own mistake."""

    role: str = "operator"
    name: str = "local"
    trust_domain: str = TRUST_DOMAIN
    key: EllipticCurvePublicKey | None = None

    def certify(self, ca: CertificateAuthority, request: OperatorRequest) -> bytes:
        evidence = None if self.role in PEOPLE else bytes(32)
        subject = Subject(self.trust_domain, self.role, self.name, evidence)
        return ca.issue_svid(subject, self.key or public_key_of(request.csr), time.time())


class LyingIssuance(Issuance):
    """Certifies people otherwise than they asked."""

    def __init__(self, kms: KmsCore, lie: Lie) -> None:
        super().__init__(kms.ca, kms.challenges, kms.policy)
        self._lie = lie

    def certify_person(self, request: OperatorRequest, operator_key: bytes, signature: bytes) -> bytes:
        return self._lie.certify(self._ca, request)


async def obtain(mesh: JoinedMesh, kms: KmsCore, layout: Layout) -> None:
    async with bootstrap_listener(mesh, kms) as address:
        await obtain_certificate(layout, [address], kms.policy.current, mesh.operators[0])


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    made.operators.mkdir()
    return made


async def test_an_operator_gets_a_certificate_under_a_challenge_for_people(
    mesh: JoinedMesh, kms: KmsCore, layout: Layout
) -> None:
    await obtain(mesh, kms, layout)
    ca = der_of(layout.mesh_ca.read_bytes())
    certificate = verify_issued(der_of(layout.operator_certificate.read_bytes()), ca, time.time())
    assert certificate.spiffe_id == f"spiffe://{TRUST_DOMAIN}/operator/local"
    assert ca == kms.ca.certificate


@pytest.mark.parametrize(
    "lie",
    [Lie(role="auditor"), Lie(role="router"), Lie(name="ada"), Lie(trust_domain="mesh.other"), Lie(key=STRANGER)],
    ids=["another person's role", "a service's role", "another name", "another mesh", "another key"],
)
async def test_a_certificate_that_was_not_asked_for_is_not_kept(
    mesh: JoinedMesh, kms: KmsCore, layout: Layout, lie: Lie
) -> None:
    with pytest.raises(MeshError) as error:
        await obtain(mesh, replace(kms, issuance=LyingIssuance(kms, lie)), layout)
    assert error.value.reason == "CERTIFICATE_NOT_ACCEPTED"
    assert not layout.operator_certificate.exists()
