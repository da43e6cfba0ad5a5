"""Who gets a certificate, and the exact reason for everyone who does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateSigningRequestBuilder, Name

from libs.config import ConfigInvalid, load
from libs.errors import MeshError
from libs.identity.certificate import make_csr, verify_issued
from libs.policy.operator_request import OperatorRequest, sign_operator_request
from libs.tee.challenge import Challenge
from services.cli.local.config import TEMPLATES
from services.devtee.machine import VirtualTd
from services.kms.ca import public_key_of
from services.kms.config import Config
from services.kms.issuance import ISSUANCE, OPERATOR_ISSUANCE
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class Applicant:
    """A service that asks for a certificate; every refusal comes from one thing done differently."""

    def __init__(self, mesh: JoinedMesh, kms: KmsCore, role: str = "router") -> None:
        self.mesh, self.kms, self.role = mesh, kms, role
        self.key = new_key()

    def certify(
        self,
        *,
        challenge: Challenge | None = None,
        td: VirtualTd | None = None,
        claims: Mapping[str, Any] | None = None,
        csr: bytes | None = None,
        instance: str = "1",
    ) -> bytes:
        challenge = challenge or self.kms.challenges.issue(ISSUANCE)
        evidence = self.mesh.evidence(self.role, challenge, self.key, td=td, claims=claims)
        certificate, appraisal = self.kms.issuance.certify_service(
            csr or make_csr(self.key), evidence.document, instance
        )
        assert appraisal.evidence_digest == evidence.digest
        return certificate


def refused(error: pytest.ExceptionInfo[MeshError]) -> str:
    return error.value.reason


@pytest.fixture
def applicant(mesh: JoinedMesh, kms: KmsCore) -> Applicant:
    return Applicant(mesh, kms)


def test_a_measured_service_gets_an_hour_under_its_own_role(applicant: Applicant, kms: KmsCore) -> None:
    certificate = verify_issued(applicant.certify(instance="a-1"), kms.ca.certificate, Clock().now)
    assert certificate.spiffe_id == f"spiffe://{TRUST_DOMAIN}/router/a-1"
    assert certificate.server_name == f"router.{TRUST_DOMAIN}"
    assert certificate.not_after - certificate.not_before == 3600
    assert certificate.evidence_digest is not None


def test_another_measurement_is_refused(applicant: Applicant, mesh: JoinedMesh) -> None:
    with pytest.raises(MeshError) as error:
        applicant.certify(td=mesh.boot("router", image="patched"))
    assert refused(error) == "MEASUREMENT_NOT_ALLOWED"


def test_the_same_image_in_another_app_is_refused(applicant: Applicant, mesh: JoinedMesh) -> None:
    with pytest.raises(MeshError) as error:
        applicant.certify(td=mesh.boot("router"))  # A new app id.
    assert refused(error) == "MEASUREMENT_NOT_ALLOWED"


@pytest.mark.parametrize("claimed", ["kms", "ledger", "nobody"])
def test_a_claimed_role_that_was_not_measured_is_refused(applicant: Applicant, claimed: str) -> None:
    with pytest.raises(MeshError) as error:
        applicant.certify(claims={"role": claimed})
    assert refused(error) == "MEASUREMENT_NOT_ALLOWED"


@pytest.mark.parametrize("claimed", ["operator", "auditor", None, 7, ["router"]])
def test_a_persons_role_is_not_certified_on_evidence(applicant: Applicant, claimed: object) -> None:
    with pytest.raises(MeshError) as error:
        applicant.certify(claims={"role": claimed})
    assert refused(error) == "ROLE_NOT_CERTIFIED"


def test_a_challenge_is_spent_once(applicant: Applicant, kms: KmsCore) -> None:
    challenge = kms.challenges.issue(ISSUANCE)
    applicant.certify(challenge=challenge)
    with pytest.raises(MeshError) as error:
        applicant.certify(challenge=challenge)
    assert refused(error) == "CHALLENGE_NOT_OPEN"


def test_a_refused_answer_has_spent_its_challenge(applicant: Applicant, kms: KmsCore, mesh: JoinedMesh) -> None:
    challenge = kms.challenges.issue(ISSUANCE)
    with pytest.raises(MeshError):
        applicant.certify(challenge=challenge, td=mesh.boot("router", image="patched"))
    with pytest.raises(MeshError) as error:
        applicant.certify(challenge=challenge)
    assert refused(error) == "CHALLENGE_NOT_OPEN"


def test_a_challenge_of_somebody_else_is_refused(applicant: Applicant, mesh: JoinedMesh) -> None:
    for challenge in (
        Challenge.unsigned("self", ISSUANCE, int(Clock().now)),
        mesh.kms("other").challenges.issue(ISSUANCE),  # The same CA key, another process.
    ):
        with pytest.raises(MeshError) as error:
            applicant.certify(challenge=challenge)
        assert refused(error) == "CHALLENGE_NOT_OPEN"


@pytest.mark.parametrize("purpose", ["kms-join", OPERATOR_ISSUANCE])
def test_a_challenge_for_something_else_certifies_no_service(applicant: Applicant, kms: KmsCore, purpose: str) -> None:
    with pytest.raises(MeshError) as error:
        applicant.certify(challenge=kms.challenges.issue(purpose))
    assert refused(error) == "CHALLENGE_NOT_OPEN"


def test_a_challenge_is_open_for_a_minute(mesh: JoinedMesh) -> None:
    clock = Clock()
    kms = mesh.kms("ticking", clock=clock)
    applicant = Applicant(mesh, kms)
    in_time, too_late = kms.challenges.issue(ISSUANCE), kms.challenges.issue(ISSUANCE)
    clock.now += 59
    applicant.certify(challenge=in_time)
    clock.now += 1
    with pytest.raises(MeshError) as error:
        applicant.certify(challenge=too_late)
    assert refused(error) == "CHALLENGE_NOT_OPEN"


def test_a_request_for_another_key_than_the_evidences_is_refused(applicant: Applicant) -> None:
    with pytest.raises(MeshError) as error:
        applicant.certify(csr=make_csr(new_key()))
    assert refused(error) == "SPKI_MISMATCH"


def test_an_expired_policy_admits_nobody_and_lets_the_kms_itself_live(mesh: JoinedMesh) -> None:
    clock = Clock()
    kms = mesh.kms("ticking", clock=clock)
    clock.now = mesh.draft["not_after"]
    applicant = Applicant(mesh, kms)
    with pytest.raises(MeshError) as error:
        applicant.certify()
    assert refused(error) == "POLICY_NOT_VALID_NOW"
    itself = Applicant(mesh, kms, "kms")
    evidence = mesh.evidence("kms", kms.challenges.issue(ISSUANCE), itself.key)
    assert kms.issuance.certify(make_csr(itself.key), evidence.document, "1", kms.policy.current)


@pytest.mark.parametrize("instance", ["", "A", "-a", "a/b", "a" * 41, "a\n"])
def test_a_malformed_instance_name_is_refused(applicant: Applicant, instance: str) -> None:
    with pytest.raises(MeshError) as error:
        applicant.certify(instance=instance)
    assert refused(error) == "INSTANCE_NAME_MALFORMED"


def _csr(key: Any, algorithm: SHA256 | None = None) -> bytes:
    builder = CertificateSigningRequestBuilder().subject_name(Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def test_a_request_that_proves_no_key_is_refused() -> None:
    good = make_csr(new_key())
    public_key_of(good)
    other_oid = good.replace(bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0205"))
    assert other_oid != good
    for csr in (
        b"",
        good[:-1],
        good[:-1] + bytes([good[-1] ^ 1]),  # Its signature is by nobody.
        other_oid,
        _csr(ec.generate_private_key(ec.SECP384R1()), SHA256()),
        _csr(rsa.generate_private_key(65537, 2048), SHA256()),
        _csr(ed25519.Ed25519PrivateKey.generate()),
    ):
        with pytest.raises(MeshError) as error:
            public_key_of(csr)
        assert refused(error) == "CSR_MALFORMED"


class Person:
    """Someone who asks an operator for a certificate."""

    def __init__(self, kms: KmsCore, operator: Ed25519PrivateKey) -> None:
        self.kms, self.operator = kms, operator
        self.key = new_key()

    def request(self, role: str = "operator", name: str = "ada", purpose: str = OPERATOR_ISSUANCE) -> OperatorRequest:
        return OperatorRequest(role, name, make_csr(self.key), self.kms.challenges.issue(purpose).nonce)

    def certify(self, request: OperatorRequest, signature: bytes) -> bytes:
        return self.kms.issuance.certify_person(request, self.operator.public_key().public_bytes_raw(), signature)


@pytest.fixture
def person(mesh: JoinedMesh, kms: KmsCore) -> Person:
    return Person(kms, mesh.operators[2])


def test_an_operators_signature_certifies_a_person_without_evidence(person: Person, kms: KmsCore) -> None:
    request = person.request("auditor", "eve")
    der = person.certify(request, sign_operator_request(request, person.operator))
    certificate = verify_issued(der, kms.ca.certificate, Clock().now)
    assert (certificate.role, certificate.instance, certificate.evidence_digest) == ("auditor", "eve", None)


def test_a_strangers_signature_certifies_nobody(person: Person) -> None:
    person.operator = Ed25519PrivateKey.generate()
    request = person.request()
    with pytest.raises(MeshError) as error:
        person.certify(request, sign_operator_request(request, person.operator))
    assert refused(error) == "OPERATOR_SIGNATURE_INVALID"


def test_a_signature_over_another_request_certifies_nobody(person: Person) -> None:
    request = person.request()
    signature = sign_operator_request(request, person.operator)
    for other in (
        OperatorRequest(request.role, request.name, make_csr(new_key()), request.nonce),
        OperatorRequest("auditor", request.name, request.csr, request.nonce),
        OperatorRequest(request.role, "bob", request.csr, request.nonce),
        person.request(),  # Another challenge.
    ):
        with pytest.raises(MeshError) as error:
            person.certify(other, signature)
        assert refused(error) == "OPERATOR_SIGNATURE_INVALID"


def test_an_operators_signature_counts_once(person: Person) -> None:
    request = person.request()
    signature = sign_operator_request(request, person.operator)
    person.certify(request, signature)
    with pytest.raises(MeshError) as error:
        person.certify(request, signature)
    assert refused(error) == "CHALLENGE_NOT_OPEN"


@pytest.mark.parametrize("purpose", ["kms-join", ISSUANCE])
def test_a_challenge_for_something_else_certifies_no_person(person: Person, purpose: str) -> None:
    request = person.request(purpose=purpose)
    with pytest.raises(MeshError) as error:
        person.certify(request, sign_operator_request(request, person.operator))
    assert refused(error) == "CHALLENGE_NOT_OPEN"


def test_an_operator_cannot_vouch_for_a_service(person: Person) -> None:
    request = person.request("ledger", "1")
    with pytest.raises(MeshError) as error:
        person.certify(request, bytes(64))
    assert refused(error) == "OPERATOR_REQUEST_MALFORMED"


def test_a_name_that_no_certificate_can_carry_is_refused_before_the_challenge_is_spent(person: Person) -> None:
    request = person.request(name="-ada")
    with pytest.raises(MeshError) as error:
        person.certify(request, sign_operator_request(request, person.operator))
    assert refused(error) == "INSTANCE_NAME_MALFORMED"


def test_a_service_gets_as_long_as_the_kms_is_told(mesh: JoinedMesh) -> None:
    short = mesh.kms(service_seconds=20)
    certificate = verify_issued(Applicant(mesh, short).certify(), short.ca.certificate, Clock().now)
    assert 18 <= certificate.not_after - Clock().now <= 20


@pytest.mark.parametrize(("seconds", "accepted"), [(9, False), (10, True), (3600, True), (3601, False)])
def test_certificates_live_ten_seconds_to_an_hour(tmp_path: Path, seconds: int, accepted: bool) -> None:
    template = (TEMPLATES / "kms.toml").read_text()
    written = tmp_path / "kms.toml"
    written.write_text(template.replace("certificate_seconds = 3600", f"certificate_seconds = {seconds}"))
    if accepted:
        assert load(written, Config).certificate_seconds == seconds
    else:
        with pytest.raises(ConfigInvalid, match="certificate_seconds must be 10 to 3600"):
            load(written, Config)
