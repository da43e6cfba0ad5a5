"""The KMS's mesh listener over real mutual TLS: who gets what, and what is on record before they get it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs import jcs
from libs.errors import MeshError
from libs.identity.certificate import make_csr, spki_of
from libs.identity.sealed import ReceiverKey, release_info
from libs.identity.statements import KmsStatements
from libs.policy.operator_request import OperatorRequest, sign_operator_request
from libs.policy.releases import KeyAlgorithm
from libs.policy.revocation import RevocationKind, parse_revocation
from libs.policy.statement import Statement, verify_statement
from libs.transparency.leaf import Kind
from services.kms.decisions import Decisions
from services.kms.issuance import ISSUANCE, OPERATOR_ISSUANCE
from services.kms.revocation import Revocations
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.kms_callers import calling, operator
from tests.fakes.refusals import refusal
from tests.fakes.revocations import REASONS, value_of
from tests.fakes.running_kms import DecisionLog, RunningKms, running_kms

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


async def test_a_policy_that_the_log_told_of_first_is_in_force_and_no_error(
    mesh: JoinedMesh, running: RunningKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = mesh.successor(running.core.policy.current)
    keep = DecisionLog.enqueue

    async def tell(log: DecisionLog, kind: Kind, body: Any, *, vault: Any, essential: bool) -> None:
        await keep(log, kind, body, vault=vault, essential=essential)
        running.core.policy.accept(second)

    monkeypatch.setattr(DecisionLog, "enqueue", tell)
    async with operator(running) as stub:
        assert (await publish(stub, second)).version == 2


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


async def test_an_outward_certificate_makes_the_log_no_longer_than_sixteen_names_do(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    names = [f"{number}.api.example" for number in range(15)]
    async with calling(mesh, running, "router") as (stub, _):
        assert (await server_certificate(stub, csr, names, ["::1"])).certificate
        assert await refusal(server_certificate(stub, csr, names, ["::1", "::2"])) == "SERVER_NAMES_TOO_MANY"
        zone = "fe80::1%" + "a" * 100_000
        assert await refusal(server_certificate(stub, csr, [], [zone])) == "SERVER_NAME_NOT_ALLOWED"
    assert [body["dns_names"] for kind, body in running.log.outbox if kind is Kind.ADMISSION] == [names]


async def test_the_mesh_key_is_no_outward_key(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "router") as (stub, router):
        csr = make_csr(router.identity.current.key)
        assert await refusal(server_certificate(stub, csr, ["api.example"])) == "ROLE_NOT_CERTIFIED"


async def test_only_services_with_an_outward_listener_get_one(mesh: JoinedMesh, running: RunningKms) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    async with calling(mesh, running, "registry") as (stub, _):
        assert await refusal(server_certificate(stub, csr, ["api.example"])) == "ROLE_NOT_ALLOWED"


def revoke(stub: pb_grpc.KmsServiceStub, signed: bytes) -> Any:
    return stub.Revoke(pb.RevokeRequest(signed_revocation=signed), timeout=10)


async def all_revocations(stub: pb_grpc.KmsServiceStub) -> list[bytes]:
    found: list[bytes] = []
    token = b""
    while True:
        page = await stub.GetRevocations(pb.GetRevocationsRequest(page_token=token), timeout=10)
        found.extend(page.signed_revocations)
        if not (token := page.next_page_token):
            return found


def compose_of(mesh: JoinedMesh, role: str) -> str:
    return mesh.tds[role].compose_hash.hex()


async def test_one_operator_revokes_and_the_log_has_it_before_any_statement(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    signed = mesh.revocation(RevocationKind.MEASUREMENT, "ab" * 32)
    async with operator(running) as stub:
        for _ in range(2):  # Again is not a mistake, and no second entry.
            answer = await revoke(stub, signed)
            assert (answer.id, answer.number) == (parse_revocation(signed).revocation.id, 1)
        newest = await stub.GetStatement(pb.GetStatementRequest(), timeout=10)
        statement = verify_statement(newest.statement, newest.signature, running.core.ca.spki)
        assert (statement.revocation, statement.revocations_digest) == (1, answer.digest)
        assert await all_revocations(stub) == [signed]
    assert running.log.outbox == [(Kind.REVOCATION, jcs.loads_object(signed))]


async def test_a_log_that_fails_lets_no_revocation_be_stated(mesh: JoinedMesh, running: RunningKms) -> None:
    running.log.full = True
    async with operator(running) as stub:
        assert await refusal(revoke(stub, mesh.revocation(RevocationKind.TENANT, "12" * 16))) == "OUTBOX_FULL"
        running.log.full = False
        assert await all_revocations(stub) == []
    assert running.core.policy.revocations.number == 0


async def test_nobody_but_an_operator_of_this_policy_revokes(mesh: JoinedMesh, running: RunningKms) -> None:
    good = mesh.revocation(RevocationKind.MEASUREMENT, "ab" * 32)
    unsigned = good.replace(parse_revocation(good).signature.hex().encode(), b"00" * 64)
    stranger = JoinedMesh(mesh.folder, mesh.machine)  # Other operators.
    keys = mesh.draft["operators"]["keys"][:2]
    running.core.policy.accept(mesh.successor(running.core.policy.current, operators={"keys": keys, "threshold": 2}))
    async with operator(running) as stub:
        for signed, reason in (
            (b"{}", "REVOCATION_MALFORMED"),
            (unsigned, "REVOCATION_SIGNATURE_INVALID"),
            (stranger.revocation(RevocationKind.MEASUREMENT, "ab" * 32), "REVOCATION_SIGNATURE_INVALID"),
            (good, "REVOCATION_SIGNATURE_INVALID"),  # By an operator whom the newest version no longer names.
            (
                mesh.revocation(RevocationKind.MEASUREMENT, "ab" * 32, operator=0, mesh="other.test"),
                "REVOCATION_OF_ANOTHER_MESH",
            ),
        ):
            assert await refusal(revoke(stub, signed)) == reason
    async with calling(mesh, running, "registry") as (service, _):
        mine = mesh.revocation(RevocationKind.MEASUREMENT, "ab" * 32, operator=0)
        assert await refusal(revoke(service, mine)) == "ROLE_NOT_ALLOWED"
    assert running.core.policy.revocations.number == 0
    assert [kind for kind, _ in running.log.outbox if kind is Kind.REVOCATION] == []


async def test_a_revocation_replayed_after_it_was_lifted_changes_nothing(mesh: JoinedMesh, running: RunningKms) -> None:
    signed = mesh.revocation(RevocationKind.MEASUREMENT, compose_of(mesh, "router"))
    lifted = [parse_revocation(signed).revocation.id.hex()]
    async with operator(running) as stub:
        await revoke(stub, signed)
        async with mesh.member("router", running.core) as router:
            assert await refusal(router.peer("kms", running.target).channel(10)) == "MEASUREMENT_REVOKED"
        await publish(stub, mesh.successor(running.core.policy.current, lifted_revocations=lifted))
        assert (await revoke(stub, signed)).number == 1
    async with calling(mesh, running, "router") as (service, _):
        await service.GetStatement(pb.GetStatementRequest(), timeout=10)


async def test_revocations_beyond_the_limit_are_refused_and_known_ones_still_succeed(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    revocations = Revocations(kms.policy, Decisions(DecisionLog()), limit=1)
    first, second = (mesh.revocation(RevocationKind.TENANT, f"{number:032x}") for number in (1, 2))
    await revocations.revoke(first)
    await revocations.revoke(first)
    with pytest.raises(MeshError) as error:
        await revocations.revoke(second)
    assert error.value.reason == "REVOCATIONS_FULL"


async def test_another_kms_is_given_no_revocations(mesh: JoinedMesh, running: RunningKms) -> None:
    """It has them from the log."""
    async with calling(mesh, running, "kms") as (stub, _):
        asked = stub.GetRevocations(pb.GetRevocationsRequest(), timeout=10)
        assert await refusal(asked) == "ROLE_NOT_ALLOWED"


async def test_many_revocations_come_in_pages_that_miss_none(mesh: JoinedMesh, running: RunningKms) -> None:
    made = [mesh.revocation(RevocationKind.TENANT, f"{number:032x}") for number in range(501)]
    running.core.policy.accept_revocations(made)
    async with operator(running) as stub:
        found = await all_revocations(stub)
        assert sorted(found) == sorted(made)
        bad = stub.GetRevocations(pb.GetRevocationsRequest(page_token=b"x"), timeout=10)
        assert await refusal(bad) == "PAGE_TOKEN_MALFORMED"
    async with calling(mesh, running, "router") as (_, router):
        statements = KmsStatements(router.peer("kms", running.target), router.identity)
        assert sorted(await statements.revocations()) == sorted(made)


async def stated(call: Any, running: RunningKms) -> Statement:
    response = await call.read()
    assert response.HasField("stated")
    return verify_statement(response.stated.statement, response.stated.signature, running.core.ca.spki)


async def test_a_watch_tells_of_every_change_at_once(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "router") as (stub, _), operator(running) as ada, asyncio.timeout(20):
        call = stub.WatchStatements(pb.WatchStatementsRequest())
        assert (await stated(call, running)).revocation == 0
        answer = await revoke(ada, mesh.revocation(RevocationKind.TENANT, "12" * 16))
        told = await stated(call, running)
        assert (told.revocation, told.revocations_digest) == (1, answer.digest)
        await publish(ada, mesh.successor(running.core.policy.current))
        assert (await stated(call, running)).version == 2


async def test_a_watch_ends_with_the_watchers_lease(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "router") as (stub, router), operator(running) as ada, asyncio.timeout(20):
        call = stub.WatchStatements(pb.WatchStatementsRequest())
        await stated(call, running)
        await revoke(ada, mesh.revocation(RevocationKind.NODE, router.spiffe_id))
        assert await refusal(call.read()) == "NODE_REVOKED"


async def test_an_operator_whose_key_is_revoked_is_cut_off(mesh: JoinedMesh, running: RunningKms) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with operator(running, key) as ada, operator(running) as bob, asyncio.timeout(20):
        call = ada.WatchStatements(pb.WatchStatementsRequest())
        await stated(call, running)
        revoked = sha256(spki_of(key.public_key())).hexdigest()
        await revoke(bob, mesh.revocation(RevocationKind.KEY, revoked))
        assert await refusal(call.read()) == "KEY_REVOKED"
        assert await refusal(publish(ada, mesh.seed)) == "KEY_REVOKED"


async def test_a_revoked_name_cuts_off_all_who_bear_it(mesh: JoinedMesh, running: RunningKms) -> None:
    async with operator(running) as ada, operator(running) as ada_with_another_key, asyncio.timeout(20):
        call = ada.WatchStatements(pb.WatchStatementsRequest())
        await stated(call, running)
        name = f"spiffe://{TRUST_DOMAIN}/operator/ada"
        running.core.policy.accept_revocations([mesh.revocation(RevocationKind.NODE, name)])
        assert await refusal(call.read()) == "NODE_REVOKED"
        assert await refusal(publish(ada_with_another_key, mesh.seed)) == "NODE_REVOKED"


@pytest.mark.parametrize("kind", REASONS)
async def test_whoever_is_revoked_gets_neither_key_nor_certificate(
    mesh: JoinedMesh, running: RunningKms, kind: RevocationKind
) -> None:
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "ledger", claims) as (stub, ledger):
        assert (await wants(stub, KEYRING)).sealed_key
        lease = running.member.leases.of(ledger.identity.current.certificate.spki_sha256)
        running.core.policy.accept_revocations([mesh.revocation(kind, value_of(kind, lease))])
        assert await refusal(wants(stub, KEYRING)) in (REASONS[kind], "EVIDENCE_REQUIRED")
        key = ledger.identity.current.key
        evidence = mesh.evidence("ledger", running.core.challenges.issue(ISSUANCE), key)
        with pytest.raises(MeshError) as error:
            running.core.issuance.certify_service(make_csr(key), evidence.document, ledger.instance)
        assert error.value.reason == REASONS[kind]
    assert running.log.decisions == [f"released {KEYRING}"]


async def test_a_person_with_a_revoked_key_gets_no_certificate(mesh: JoinedMesh, kms: KmsCore) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    revoked = sha256(spki_of(key.public_key())).hexdigest()
    kms.policy.accept_revocations([mesh.revocation(RevocationKind.KEY, revoked)])
    nonce = kms.challenges.issue(OPERATOR_ISSUANCE).nonce
    request = OperatorRequest(role="operator", name="ada", csr=make_csr(key), nonce=nonce)
    signature = sign_operator_request(request, mesh.operators[0])
    with pytest.raises(MeshError) as error:
        kms.issuance.certify_person(request, mesh.operators[0].public_key().public_bytes_raw(), signature)
    assert error.value.reason == "KEY_REVOKED"
