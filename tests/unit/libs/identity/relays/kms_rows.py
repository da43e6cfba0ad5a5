"""The bootstrap listener: a KMS that is not one, to those who want a certificate, and those who must get none."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateSigningRequestBuilder, Name
from teemesh.kms.v1 import bootstrap_pb2 as pb
from teemesh.kms.v1 import bootstrap_pb2_grpc as pb_grpc

from libs.identity.authority import CertificateRequest, Issued, KmsAuthority, proven_kms
from libs.identity.certificate import Subject, make_csr, spki_of
from libs.identity.renewal import Identity, Prover
from libs.policy.document import Policy
from libs.policy.operator_request import OperatorRequest, sign_operator_request
from libs.policy.revocation import RevocationKind
from libs.rpc.errors import remote_errors
from libs.tee.challenge import Challenge
from services.devtee.machine import Machine
from services.kms.ca import public_key_of
from services.kms.issuance import ISSUANCE, OPERATOR_ISSUANCE, require_other_key
from services.kms.replication import PURPOSE
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh
from tests.fakes.running_kms import bootstrap_listener
from tests.unit.libs.identity.relays.ground import Ground
from tests.unit.libs.identity.relays.row import Attack, Row
from tests.unit.libs.identity.test_authority import Request, relay


def offering(**bent: Any) -> Attack:
    """A service asks for a certificate where something else than its KMS listens."""

    async def attack(ground: Ground) -> None:
        async with bootstrap_listener(ground.mesh, ground.kms, **bent) as address:
            await _ask(ground, address)

    return attack


async def _ask(ground: Ground, address: str) -> None:
    await KmsAuthority((address,), TRUST_DOMAIN).issue(Request(ground.mesh), ground.keeper().current)


async def measured_otherwise(ground: Ground) -> None:
    await offering(td=ground.mesh.boot("kms", image="patched"))(ground)


async def with_a_root_of_its_own(ground: Ground) -> None:
    """A KMS of the same code on a software TEE of its own."""
    other = JoinedMesh(ground.mesh.folder, Machine.create(int(time.time())))
    async with bootstrap_listener(other, ground.kms) as address:
        await _ask(ground, address)


async def with_another_leaf(ground: Ground) -> None:
    async with bootstrap_listener(ground.mesh, ground.kms) as address, relay(address) as (_, middle):
        await _ask(ground, middle)


async def with_an_old_nonce(ground: Ground) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    earlier = Challenge.unsigned("self", "kms-bootstrap", int(time.time()))
    claims = {"ca_spki_sha256": ground.kms.ca.spki_sha256.hex()}
    document = ground.mesh.evidence("kms", earlier, key, claims=claims).document
    async with bootstrap_listener(ground.mesh, ground.kms) as address, relay(address) as (man, middle):
        man.earlier = pb.GetKmsEvidenceResponse(document=document, ca_certificate=ground.kms.ca.certificate)
        await _ask(ground, middle)


async def with_a_broken_ca(ground: Ground) -> None:
    ground.kms.ca.certificate = ground.kms.ca.certificate[:-1]
    await offering()(ground)


Certify = Callable[[Ground, pb_grpc.KmsBootstrapServiceStub, ec.EllipticCurvePrivateKey], Awaitable[object]]


def applying(certify: Certify) -> Attack:
    """Somebody asks the real KMS for a certificate."""

    async def attack(ground: Ground) -> None:
        async with _stub(ground) as stub:
            with remote_errors():
                await certify(ground, stub, ec.generate_private_key(ec.SECP256R1()))

    return attack


@asynccontextmanager
async def _stub(ground: Ground) -> AsyncIterator[pb_grpc.KmsBootstrapServiceStub]:
    async with (
        bootstrap_listener(ground.mesh, ground.kms) as address,
        proven_kms(address, TRUST_DOMAIN, ground.kms.policy.current) as proven,
    ):
        yield pb_grpc.KmsBootstrapServiceStub(proven.channel)


def wanting(**changes: Any) -> Certify:
    """Evidence that was made for this, with one part of the request exchanged."""

    async def certify(ground: Ground, stub: pb_grpc.KmsBootstrapServiceStub, key: ec.EllipticCurvePrivateKey) -> Any:
        given: dict[str, Any] = {"csr": make_csr(key), "instance": "1"}
        document = ground.proof("router", key).document
        request = pb.IssueCertificateRequest(**{**given, "document": document, **changes})
        return await stub.IssueCertificate(request, timeout=10)

    return certify


def proving(make: Callable[[Ground, ec.EllipticCurvePrivateKey], Any]) -> Certify:
    """Evidence that was made otherwise than for this."""

    async def certify(ground: Ground, stub: pb_grpc.KmsBootstrapServiceStub, key: ec.EllipticCurvePrivateKey) -> Any:
        document = make(ground, key).document
        request = pb.IssueCertificateRequest(csr=make_csr(key), document=document, instance="1")
        return await stub.IssueCertificate(request, timeout=10)

    return certify


async def twice(ground: Ground, stub: pb_grpc.KmsBootstrapServiceStub, key: ec.EllipticCurvePrivateKey) -> None:
    document = ground.proof("router", key).document
    for _ in range(2):
        request = pb.IssueCertificateRequest(csr=make_csr(key), document=document, instance="1")
        await stub.IssueCertificate(request, timeout=10)


async def too_late(ground: Ground) -> None:
    clock = Clock()
    kms = ground.mesh.kms("ticking", clock=clock)
    key = ec.generate_private_key(ec.SECP256R1())
    document = ground.proof("router", key, challenge=kms.challenges.issue(ISSUANCE)).document
    clock.now += 61
    kms.issuance.certify_service(make_csr(key), document, "1")


def revoked(kind: RevocationKind) -> Certify:
    async def certify(ground: Ground, stub: pb_grpc.KmsBootstrapServiceStub, key: ec.EllipticCurvePrivateKey) -> Any:
        spki_sha256 = sha256(spki_of(key.public_key())).hexdigest()
        name = f"spiffe://{TRUST_DOMAIN}/router/1"
        value = spki_sha256 if kind is RevocationKind.KEY else name
        ground.kms.policy.accept_revocations([ground.mesh.revocation(kind, value)])
        return await wanting()(ground, stub, key)

    return certify


def csr_of(key: Any) -> bytes:
    return (
        CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    )


async def another_csr(ground: Ground, stub: pb_grpc.KmsBootstrapServiceStub, key: ec.EllipticCurvePrivateKey) -> Any:
    """The victim's evidence with the thief's request."""
    return await wanting(csr=make_csr(ec.generate_private_key(ec.SECP256R1())))(ground, stub, key)


async def unproven_csr(ground: Ground, stub: pb_grpc.KmsBootstrapServiceStub, key: ec.EllipticCurvePrivateKey) -> Any:
    """The victim's key in a request that the victim did not sign."""
    good = make_csr(key)
    return await wanting(csr=good[:-1] + bytes([good[-1] ^ 1]))(ground, stub, key)


def person(
    sign: Callable[[Ground, OperatorRequest], bytes],
    number: int | None = 0,
    nonce: Callable[[Ground], Challenge] = lambda ground: ground.kms.challenges.issue(OPERATOR_ISSUANCE),
    role: str = "operator",
    name: str = "ada",
    revoke: RevocationKind | None = None,
) -> Attack:
    """Somebody asks for a person's certificate, with what an operator signed."""

    async def attack(ground: Ground) -> None:
        challenge = nonce(ground)
        key = ec.generate_private_key(ec.SECP256R1())
        csr = make_csr(key)
        wanted = OperatorRequest(role, name, csr, challenge.nonce)
        stranger = JoinedMesh(ground.mesh.folder, ground.mesh.machine).operators[0]
        operator = stranger if number is None else ground.mesh.operators[number]
        if revoke:
            spki_sha256 = sha256(spki_of(key.public_key())).hexdigest()
            value = spki_sha256 if revoke is RevocationKind.KEY else f"spiffe://{TRUST_DOMAIN}/{role}/{name}"
            ground.kms.policy.accept_revocations([ground.mesh.revocation(revoke, value)])
        request = pb.IssueOperatorCertificateRequest(
            role=role,
            name=name,
            csr=csr,
            challenge=challenge.encode(),
            operator_key=operator.public_key().public_bytes_raw(),
            signature=sign(ground, wanted) if number is not None else sign_operator_request(wanted, operator),
        )
        async with _stub(ground) as stub:
            with remote_errors():
                await stub.IssueOperatorCertificate(request, timeout=10)

    return attack


def signed(ground: Ground, wanted: OperatorRequest) -> bytes:
    return sign_operator_request(wanted, ground.mesh.operators[0])


class LyingKms:
    """An authority that certifies something else than was asked for, or another key."""

    def __init__(self, ground: Ground, key: ec.EllipticCurvePublicKey | None = None, **lie: Any) -> None:
        self._ground = ground
        self._key = key
        self._lie = lie

    async def issue(self, request: CertificateRequest, policy: Policy) -> Issued:
        kms = self._ground.kms
        document = await request.prove(kms.challenges.issue(ISSUANCE))
        asked = Subject(TRUST_DOMAIN, "router", request.instance, sha256(document).digest())
        key = self._key or public_key_of(request.csr)
        return Issued(kms.ca.issue_svid(replace(asked, **self._lie), key, time.time()), kms.ca.certificate)


class HastyKms(LyingKms):
    """An authority that asks for no evidence."""

    async def issue(self, request: CertificateRequest, policy: Policy) -> Issued:
        kms = self._ground.kms
        subject = Subject(TRUST_DOMAIN, "router", request.instance, bytes(32))
        return Issued(kms.ca.issue_svid(subject, public_key_of(request.csr), time.time()), kms.ca.certificate)


def certified_otherwise(**lie: Any) -> Attack:
    async def attack(ground: Ground) -> None:
        await _identity(ground, await _prover(ground), LyingKms(ground, **lie)).obtain()

    return attack


async def certified_without_evidence(ground: Ground) -> None:
    await _identity(ground, await _prover(ground), HastyKms(ground)).obtain()


async def of_another_ca(ground: Ground) -> None:
    """The same address is another KMS by the time of the renewal."""
    honest = LyingKms(ground)
    identity = _identity(ground, await _prover(ground), honest)
    await identity.obtain()
    ground.kms = ground.mesh.kms("other", root=bytes(32))
    await identity.obtain()


async def _prover(ground: Ground) -> Prover:
    member = await ground.member("router", instance="2")
    return Prover(member.guest, ground.mesh.collateral, {"role": "router"})


def _identity(ground: Ground, prover: Prover, authority: LyingKms) -> Identity:
    return Identity(prover, authority, ground.keeper(), "router", "1")


async def outward_as_inward(ground: Ground) -> None:
    key = ground.genuine().key.public_key()
    require_other_key(key, spki_of(key))


ROWS = [
    Row("a KMS of other code", "MEASUREMENT_NOT_ALLOWED", measured_otherwise),
    Row("a KMS of another role", "ROLE_MISMATCH", offering(claims={"role": "router"})),
    Row("a KMS on a software TEE with a root of its own", "VENDOR_ROOT_NOT_TRUSTED", with_a_root_of_its_own),
    Row("a KMS that names another CA than it offers", "CA_NOT_PROVEN", offering(claims={"ca_spki_sha256": "ab" * 32})),
    Row("a KMS whose CA certificate cannot be read", "CA_NOT_PROVEN", with_a_broken_ca),
    Row("the real KMS's evidence from behind another leaf", "SPKI_MISMATCH", with_another_leaf),
    Row("the real KMS's evidence for an earlier question", "NONCE_MISMATCH", with_an_old_nonce),
    Row("evidence with which a certificate was issued before", "CHALLENGE_NOT_OPEN", applying(twice)),
    Row("evidence that answers a challenge a minute late", "CHALLENGE_NOT_OPEN", too_late),
    Row(
        "evidence for a challenge that the KMS never made",
        "CHALLENGE_NOT_OPEN",
        applying(
            proving(
                lambda g, key: g.proof("router", key, challenge=Challenge.unsigned("self", ISSUANCE, int(time.time())))
            )
        ),
    ),
    Row(
        "evidence for a challenge of another KMS",
        "CHALLENGE_NOT_OPEN",
        applying(
            proving(lambda g, key: g.proof("router", key, challenge=g.mesh.kms("other").challenges.issue(ISSUANCE)))
        ),
    ),
    Row(
        "evidence for a challenge of another purpose",
        "CHALLENGE_NOT_OPEN",
        applying(proving(lambda g, key: g.proof("router", key, challenge=g.kms.challenges.issue(PURPOSE)))),
    ),
    Row(
        "evidence for a person's challenge",
        "CHALLENGE_NOT_OPEN",
        applying(proving(lambda g, key: g.proof("router", key, challenge=g.kms.challenges.issue(OPERATOR_ISSUANCE)))),
    ),
    Row(
        "evidence that claims to be a person",
        "ROLE_NOT_CERTIFIED",
        applying(proving(lambda g, key: g.proof("router", key, claims={"role": "operator"}))),
    ),
    Row(
        "evidence that claims another role than was measured",
        "MEASUREMENT_NOT_ALLOWED",
        applying(proving(lambda g, key: g.proof("ledger", key, td=g.mesh.tds["router"]))),
    ),
    Row("somebody else's evidence with a request of one's own", "SPKI_MISMATCH", applying(another_csr)),
    Row("a request that its key did not sign", "CSR_MALFORMED", applying(unproven_csr)),
    Row("what is no request", "CSR_MALFORMED", applying(wanting(csr=b"request"))),
    Row(
        "a request for a key that is not P-256",
        "CSR_MALFORMED",
        applying(wanting(csr=csr_of(ec.generate_private_key(ec.SECP384R1())))),
    ),
    Row("a request for a name that leads elsewhere", "INSTANCE_NAME_MALFORMED", applying(wanting(instance="1/kms"))),
    Row("a request for a revoked key", "KEY_REVOKED", applying(revoked(RevocationKind.KEY))),
    Row("a request for a revoked instance", "NODE_REVOKED", applying(revoked(RevocationKind.NODE))),
    Row("a person whom nobody of this mesh signed for", "OPERATOR_SIGNATURE_INVALID", person(signed, None)),
    Row(
        "a person whom the operator signed for in another role",
        "OPERATOR_SIGNATURE_INVALID",
        person(lambda g, wanted: signed(g, replace(wanted, role="auditor"))),
    ),
    Row(
        "a person's request that another operator signed",
        "OPERATOR_SIGNATURE_INVALID",
        person(signed, 1),
    ),
    Row(
        "an operator's signature under a challenge that is not open",
        "CHALLENGE_NOT_OPEN",
        person(signed, nonce=lambda g: Challenge.unsigned("self", OPERATOR_ISSUANCE, int(time.time()))),
    ),
    Row(
        "an operator's signature under a service's challenge",
        "CHALLENGE_NOT_OPEN",
        person(signed, nonce=lambda g: g.kms.challenges.issue(ISSUANCE)),
    ),
    Row(
        "an operator's signature under a newcomer's challenge",
        "CHALLENGE_NOT_OPEN",
        person(signed, nonce=lambda g: g.kms.challenges.issue(PURPOSE)),
    ),
    Row("a person of a service's role", "OPERATOR_REQUEST_MALFORMED", person(lambda g, w: b"", role="kms")),
    Row("a person whose name leads elsewhere", "INSTANCE_NAME_MALFORMED", person(lambda g, w: b"", name="ada/kms")),
    Row("a person whose key was revoked", "KEY_REVOKED", person(signed, revoke=RevocationKind.KEY)),
    Row("a person whose name was revoked", "NODE_REVOKED", person(signed, revoke=RevocationKind.NODE)),
    Row(
        "a certificate over other evidence than was sent",
        "CERTIFICATE_NOT_ACCEPTED",
        certified_otherwise(evidence_digest=bytes(32)),
    ),
    Row("a certificate for which no evidence was asked", "CERTIFICATE_NOT_ACCEPTED", certified_without_evidence),
    Row(
        "a certificate for another key than was asked for",
        "CERTIFICATE_NOT_ACCEPTED",
        certified_otherwise(key=ec.generate_private_key(ec.SECP256R1()).public_key()),
    ),
    Row("a certificate for another instance than asked", "CERTIFICATE_NOT_ACCEPTED", certified_otherwise(instance="3")),
    Row("a certificate for another role than asked", "CERTIFICATE_NOT_ACCEPTED", certified_otherwise(role="node")),
    Row(
        "a certificate in another mesh than asked",
        "CERTIFICATE_NOT_ACCEPTED",
        certified_otherwise(trust_domain="mesh.other"),
    ),
    Row("a certificate of another CA than the first", "CA_CHANGED", of_another_ca),
    Row("a mesh key that is to be an outward key too", "ROLE_NOT_CERTIFIED", outward_as_inward),
]
