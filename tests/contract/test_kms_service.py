"""The KMS's mesh listener over real mutual TLS: who gets what, and what is on record before they get it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs import jcs
from libs.identity.certificate import make_csr
from libs.identity.sealed import ReceiverKey, release_info
from libs.policy.releases import KeyAlgorithm
from libs.policy.statement import verify_statement
from libs.transparency.leaf import Kind
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.kms_callers import calling, operator, refusal
from tests.fakes.running_kms import RunningKms, running_kms

KEYRING = "ledger-keyring"


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


def wants(stub: pb_grpc.KmsServiceStub, name: str, epoch: int = 0) -> Any:
    request = pb.ReleaseKeyRequest(name=name, epoch=epoch, algorithm=pb.KEY_ALGORITHM_AES_256)
    return stub.ReleaseKey(request, timeout=10)


async def test_a_key_arrives_sealed_to_the_receivers_evidence(mesh: JoinedMesh, running: RunningKms) -> None:
    receiver = ReceiverKey()
    async with calling(mesh, running, "ledger", {"hpke_key": receiver.public.hex()}) as (stub, ledger):
        answer = await wants(stub, KEYRING)
        key = receiver.open(answer.sealed_key, release_info(KEYRING, 1, ledger.spiffe_id))
        assert (answer.epoch, key) == (1, running.core.keyring.material(KEYRING, 1, KeyAlgorithm.AES_256))
        (decision,) = [body for kind, body in running.log.outbox if kind is Kind.KEY_DECISION]
        assert decision == {
            "decision": "released",
            "name": KEYRING,
            "epoch": 1,
            "spiffe_id": ledger.spiffe_id,
            "evidence_sha256": ledger.identity.current.evidence.digest.hex(),
            "policy_version": 1,
        }


async def test_a_role_that_policy_does_not_name_is_refused_and_that_is_on_record(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    async with calling(mesh, running, "router", {"hpke_key": ReceiverKey().public.hex()}) as (stub, _):
        for name in (KEYRING, "ledger-vault/acme", "models/a", "unheard-of"):
            assert await refusal(wants(stub, name)) == "KEY_NOT_ALLOWED"
            assert running.log.decisions[-1] == f"refused {name}"


async def test_boot_class_keys_do_not_wait_for_the_ledger_and_others_do(mesh: JoinedMesh, running: RunningKms) -> None:
    running.log.away = True
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "ledger", claims) as (stub, _):
        assert (await wants(stub, KEYRING)).sealed_key
    async with calling(mesh, running, "node", {**claims, "models": []}) as (stub, _):
        assert await refusal(wants(stub, "models/qwen2.5")) == "LEDGER_UNAVAILABLE"
        running.log.away = False
        assert (await wants(stub, "models/qwen2.5")).sealed_key
    assert running.log.decisions == ["released models/qwen2.5", f"released {KEYRING}"]


async def test_evidence_without_an_hpke_key_receives_nothing(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "ledger") as (stub, _):
        assert await refusal(wants(stub, KEYRING)) == "HPKE_KEY_MISSING"
    assert running.log.decisions == []


async def test_names_and_epochs_that_do_not_exist_are_refused(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "ledger", {"hpke_key": ReceiverKey().public.hex()}) as (stub, _):
        assert await refusal(wants(stub, "Ledger Keyring")) == "KEY_NAME_MALFORMED"
        assert await refusal(wants(stub, "ledger-vault/*")) == "KEY_NAME_MALFORMED"
        assert await refusal(wants(stub, KEYRING, 2)) == "KEY_EPOCH_UNKNOWN"


async def test_the_statement_is_the_cas_and_names_the_policy(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "router") as (stub, _):
        answer = await stub.GetStatement(pb.GetStatementRequest(), timeout=10)
        statement = verify_statement(answer.statement, answer.signature, running.core.ca.spki)
        assert (statement.version, statement.digest) == (1, running.core.policy.current.digest)
        policy = await stub.GetPolicy(pb.GetPolicyRequest(version=1), timeout=10)
        assert policy.signed_policy == mesh.seed
        assert await refusal(stub.GetPolicy(pb.GetPolicyRequest(version=2), timeout=10)) == "POLICY_UNKNOWN"


def publish(stub: pb_grpc.KmsServiceStub, signed: bytes) -> Any:
    return stub.PublishPolicy(pb.PublishPolicyRequest(signed_policy=signed), timeout=10)


async def test_an_operator_puts_the_next_policy_in_force(mesh: JoinedMesh, running: RunningKms) -> None:
    second = mesh.successor(running.core.policy.current)
    async with operator(running) as stub:
        for _ in range(2):  # Again is not a mistake.
            assert (await publish(stub, second)).version == 2
        assert await refusal(publish(stub, mesh.seed)) == "POLICY_VERSION_NOT_NEXT"
        unsigned = mesh.successor(running.core.policy.current).replace(b'"signatures":[', b'"signatures":[]}')[:-1]
        assert await refusal(publish(stub, unsigned)) == "POLICY_MALFORMED"
        answer = await stub.GetStatement(pb.GetStatementRequest(), timeout=10)
    assert verify_statement(answer.statement, answer.signature, running.core.ca.spki).version == 2
    assert running.log.outbox == [(Kind.POLICY, jcs.loads_object(second))]


async def test_of_two_policies_published_at_once_one_is_in_force_and_on_record(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    current = running.core.policy.current
    rivals = [mesh.successor(current, evidence_max_age_seconds=seconds) for seconds in (600, 700)]
    async with operator(running) as stub:
        answers = await asyncio.gather(*(publish(stub, signed) for signed in rivals), return_exceptions=True)
    assert len([answer for answer in answers if isinstance(answer, BaseException)]) == 1
    assert [body for kind, body in running.log.outbox if kind is Kind.POLICY] == [
        jcs.loads_object(running.core.policy.signed(2))
    ]


async def test_a_policy_that_expired_can_be_followed_by_the_next(mesh: JoinedMesh, running: RunningKms) -> None:
    expired = mesh.successor(running.core.policy.current, not_after=mesh.draft["not_before"] + 60)
    running.core.policy.accept(expired)
    async with operator(running) as stub:
        assert await refusal(stub.GetStatement(pb.GetStatementRequest(), timeout=10)) == "POLICY_NOT_VALID_NOW"
        assert (await publish(stub, mesh.successor(running.core.policy.current))).version == 3
        await stub.GetStatement(pb.GetStatementRequest(), timeout=10)


async def test_services_publish_no_policy(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "registry") as (stub, _):
        assert await refusal(publish(stub, mesh.successor(running.core.policy.current))) == "ROLE_NOT_ALLOWED"


def server_certificate(stub: pb_grpc.KmsServiceStub, csr: bytes, dns: list[str], ips: list[str] | None = None) -> Any:
    request = pb.IssueServerCertificateRequest(csr=csr, dns_names=dns, ip_addresses=ips or [])
    return stub.IssueServerCertificate(request, timeout=10)


async def test_an_outward_certificate_carries_the_names_asked_for(mesh: JoinedMesh, running: RunningKms) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    async with calling(mesh, running, "router") as (stub, _):
        answer = await server_certificate(stub, csr, ["api.example"], ["127.0.0.1", "::1"])
    certificate = x509.load_der_x509_certificate(answer.certificate)
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(running.core.ca.certificate))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["api.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    "name", [TRUST_DOMAIN, f"kms.{TRUST_DOMAIN}", f"KMS.{TRUST_DOMAIN}", f"kms.{TRUST_DOMAIN}.", "*.example", "", "a b"]
)
async def test_no_outward_certificate_names_a_member(mesh: JoinedMesh, running: RunningKms, name: str) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    async with calling(mesh, running, "router") as (stub, _):
        assert await refusal(server_certificate(stub, csr, ["api.example", name])) == "SERVER_NAME_NOT_ALLOWED"
        assert await refusal(server_certificate(stub, csr, [], ["127.0.0.256"])) == "SERVER_NAME_NOT_ALLOWED"
        assert await refusal(server_certificate(stub, csr, [])) == "SERVER_NAME_NOT_ALLOWED"


async def test_the_mesh_key_is_no_outward_key(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "router") as (stub, router):
        csr = make_csr(router.identity.current.key)
        assert await refusal(server_certificate(stub, csr, ["api.example"])) == "ROLE_NOT_CERTIFIED"


async def test_only_services_with_an_outward_listener_get_one(mesh: JoinedMesh, running: RunningKms) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    async with calling(mesh, running, "registry") as (stub, _):
        assert await refusal(server_certificate(stub, csr, ["api.example"])) == "ROLE_NOT_ALLOWED"
