"""Named keys over real mutual TLS: who may use which, under which epoch, and what is on record before they do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs import jcs
from libs.identity.sealed import ReceiverKey, SealedKeyRefused, release_info
from libs.policy.custody import KeyStatementSignatureInvalid, verify_key_statement, verify_key_use
from libs.policy.orders import ERASE_VAULT, HOLD_VAULT, RETIRE_KEY, Order, SignedOrder
from libs.policy.releases import KeyAlgorithm
from libs.transparency.leaf import Kind
from services.kms.changes import Change
from services.kms.pages import Place
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.kms_callers import calling, operator
from tests.fakes.refusals import refusal
from tests.fakes.running_kms import DecisionLog, RunningKms, running_kms

HELD = "agents/claims"
SIGNED_FOR = "agents/letters"
ENVIRONMENT = "environment/agent"
MODEL = "models/a"
VAULT = "0a" * 16
MESSAGE = b"the claim is granted"


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


def release(stub: pb_grpc.KmsServiceStub, name: str, algorithm: KeyAlgorithm, epoch: int = 0) -> Any:
    request = pb.ReleaseKeyRequest(name=name, epoch=epoch, algorithm=pb.KeyAlgorithm.ValueType(algorithm.number))
    return stub.ReleaseKey(request, timeout=10)


def rotate(stub: pb_grpc.KmsServiceStub, name: str, epoch: int) -> Any:
    return stub.RotateKey(pb.RotateKeyRequest(name=name, epoch=epoch), timeout=10)


def state(stub: pb_grpc.KmsServiceStub, name: str, epoch: int = 0) -> Any:
    return stub.GetPublicKey(pb.GetPublicKeyRequest(name=name, epoch=epoch), timeout=10)


def have_signed(stub: pb_grpc.KmsServiceStub, name: str, message: bytes = MESSAGE) -> Any:
    return stub.SignWithKey(pb.SignWithKeyRequest(name=name, message=message), timeout=10)


def retire(stub: pb_grpc.KmsServiceStub, order: SignedOrder) -> Any:
    return stub.RetireKey(pb.RetireKeyRequest(signed_order=order.document), timeout=10)


def order(mesh: JoinedMesh, name: str, signers: tuple[int, ...] = (0, 1), **changes: Any) -> SignedOrder:
    given = {"trust_domain": TRUST_DOMAIN, "action": RETIRE_KEY, "subject": name, "not_after": 2**33}
    signed = SignedOrder(Order(**{**given, **changes}))
    for number in signers:
        signed = signed.signed_by(mesh.operators[number])
    return signed


async def test_the_holder_of_a_released_key_signs_as_the_public_key_says(mesh: JoinedMesh, running: RunningKms) -> None:
    receiver = ReceiverKey()
    async with calling(mesh, running, "agent", {"hpke_key": receiver.public.hex()}) as (stub, agent):
        answer = await release(stub, HELD, KeyAlgorithm.ED25519)
        stated = await state(stub, HELD)
        material = receiver.open(answer.sealed_key, release_info(HELD, 1, agent.spiffe_id, KeyAlgorithm.ED25519))
        with pytest.raises(SealedKeyRefused):  # The same bytes as a key for something else.
            receiver.open(answer.sealed_key, release_info(HELD, 1, agent.spiffe_id))
    statement = verify_key_statement(stated.statement, stated.statement_signature, running.core.ca.spki)
    assert material == running.core.keyring.material(HELD, 1, KeyAlgorithm.ED25519)
    assert (statement.name, statement.epoch, statement.newest_epoch) == (HELD, 1, 1)
    assert (statement.trust_domain, statement.roles) == (TRUST_DOMAIN, frozenset({"agent"}))
    assert statement.policy_digest == running.core.policy.current.digest
    public = serialization.load_der_public_key(statement.public_key)
    assert isinstance(public, Ed25519PublicKey)
    assert public.public_bytes_raw() == bytes.fromhex(
        running.core.keyring.public_key(HELD, 1, KeyAlgorithm.ED25519).hex()[-64:]
    )


async def test_a_signature_leads_to_the_evidence_that_asked_for_it(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "agent") as (stub, agent):
        for name in (HELD, SIGNED_FOR):
            answer = await have_signed(stub, name)
            use = verify_key_use(answer.statement, answer.statement_signature, running.core.ca.spki)
            assert (use.name, use.epoch, use.spiffe_id) == (name, 1, agent.spiffe_id)
            assert use.evidence_sha256 == agent.identity.current.evidence.digest
            assert use.message_sha256 == sha256(MESSAGE).digest()
            assert use.signature_sha256 == sha256(answer.signature).digest()
            assert running.log.entries[-1][1] == {
                "decision": "signed",
                "name": name,
                "epoch": 1,
                "spiffe_id": agent.spiffe_id,
                "evidence_sha256": agent.identity.current.evidence.digest.hex(),
                "policy_version": 1,
                "message_sha256": sha256(MESSAGE).hexdigest(),
            }
    public = serialization.load_der_public_key(use.public_key)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(answer.signature, MESSAGE, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(KeyStatementSignatureInvalid):  # A statement of the other kind.
        verify_key_statement(answer.statement, answer.statement_signature, running.core.ca.spki)


async def test_nothing_is_signed_before_the_ledger_has_it(mesh: JoinedMesh, running: RunningKms) -> None:
    running.log.away = True
    async with calling(mesh, running, "agent") as (stub, _):
        assert await refusal(have_signed(stub, HELD)) == "LEDGER_UNAVAILABLE"
        running.log.away = False
        assert (await have_signed(stub, HELD)).signature


async def test_a_key_is_used_as_policy_says_or_not_at_all(mesh: JoinedMesh, running: RunningKms) -> None:
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "agent", claims) as (stub, _):
        assert await refusal(release(stub, SIGNED_FOR, KeyAlgorithm.P_256)) == "KEY_NOT_RELEASED"
        assert await refusal(release(stub, HELD, KeyAlgorithm.P_256)) == "KEY_ALGORITHM_MISMATCH"
        assert await refusal(have_signed(stub, ENVIRONMENT)) == "KEY_SIGNS_NOT"
        assert await refusal(have_signed(stub, HELD, b"a" * (1024 * 1024 + 1))) == "MESSAGE_TOO_LARGE"
        unsaid = stub.ReleaseKey(pb.ReleaseKeyRequest(name=HELD), timeout=10)
        assert await refusal(unsaid) == "KEY_ALGORITHM_MISSING"
        assert await refusal(state(stub, MODEL)) == "KEY_WITHOUT_PUBLIC_HALF"
        assert await refusal(state(stub, "unheard-of")) == "KEY_NOT_ALLOWED"
    reasons = [body["reason"] for _, body in running.log.outbox if body.get("decision") == "refused"]
    assert reasons == ["KEY_NOT_RELEASED", "KEY_ALGORITHM_MISMATCH", "KEY_SIGNS_NOT"]


async def test_another_role_neither_holds_nor_signs(mesh: JoinedMesh, running: RunningKms) -> None:
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "router", claims) as (stub, _):
        for name in (HELD, SIGNED_FOR):
            assert await refusal(have_signed(stub, name)) == "KEY_NOT_ALLOWED"
        assert await refusal(release(stub, HELD, KeyAlgorithm.ED25519)) == "KEY_NOT_ALLOWED"


async def test_a_rule_for_some_composes_excludes_the_others_of_the_role(mesh: JoinedMesh, running: RunningKms) -> None:
    mine = mesh.tds["agent"].compose_hash.hex()
    rules = [
        {"name": "data/mine", "roles": ["agent"], "compose_hashes": [mine]},
        {"name": "data/theirs", "roles": ["agent"], "compose_hashes": ["ab" * 32]},
    ]
    running.core.policy.accept(mesh.successor(running.core.policy.current, key_releases=rules))
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "agent", claims) as (stub, _):
        assert (await release(stub, "data/mine", KeyAlgorithm.AES_256)).sealed_key
        assert await refusal(release(stub, "data/theirs", KeyAlgorithm.AES_256)) == "KEY_NOT_ALLOWED"


async def test_a_new_epoch_is_the_newest_and_the_old_one_still_opens(mesh: JoinedMesh, running: RunningKms) -> None:
    receiver = ReceiverKey()
    async with calling(mesh, running, "node", {"hpke_key": receiver.public.hex(), "models": []}) as (stub, node):
        async with operator(running) as ada:
            for _ in range(2):  # Again is not a mistake.
                assert (await rotate(ada, MODEL, 2)).epoch == 2
            assert await refusal(rotate(ada, MODEL, 4)) == "KEY_EPOCH_NOT_NEXT"
            assert await refusal(rotate(ada, MODEL, 1)) == "KEY_EPOCH_NOT_NEXT"
        keys = {}
        for asked, epoch in ((0, 2), (1, 1), (2, 2)):
            answer = await release(stub, MODEL, KeyAlgorithm.AES_256, asked)
            assert (answer.epoch, answer.newest_epoch) == (epoch, 2)
            keys[epoch] = receiver.open(answer.sealed_key, release_info(MODEL, epoch, node.spiffe_id))
        assert keys[1] != keys[2]
        assert await refusal(release(stub, MODEL, KeyAlgorithm.AES_256, 3)) == "KEY_EPOCH_UNKNOWN"
    changes = [body for _, body in running.log.entries if body["decision"] == "rotated"]
    assert [(change["name"], change["epoch"], change["cause"]) for change in changes] == [
        (MODEL, 2, f"spiffe://{TRUST_DOMAIN}/operator/ada")
    ]


async def test_the_kms_signs_with_the_newest_epoch(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "agent") as (stub, _), operator(running) as ada:
        await rotate(ada, HELD, 2)
        answer = await have_signed(stub, HELD)
        assert verify_key_use(answer.statement, answer.statement_signature, running.core.ca.spki).epoch == 2
        older = await state(stub, HELD, 1)  # What was signed before can still be verified.
        statement = verify_key_statement(older.statement, older.statement_signature, running.core.ca.spki)
        assert (statement.epoch, statement.newest_epoch) == (1, 2)


async def test_a_rotation_that_the_ledger_did_not_take_in_time_has_happened_and_is_said_again(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    running.log.away = True
    async with operator(running) as ada:
        assert await refusal(rotate(ada, MODEL, 2)) == "LEDGER_UNAVAILABLE"
        running.log.away = False
        assert (await rotate(ada, MODEL, 2)).epoch == 2
    assert [change.epoch for change in running.keys.book.pages.unlogged] == [2]


@pytest.mark.parametrize(
    ("name", "epoch", "reason"),
    [
        ("ledger-keyring", 2, "KEY_EPOCHS_FIXED"),
        ("ledger-vault/acme", 999, "KEY_EPOCHS_FIXED"),
        ("unheard-of", 2, "KEY_NOT_ALLOWED"),
        ("Models", 2, "KEY_NAME_MALFORMED"),
    ],
)
async def test_what_cannot_be_rotated(
    mesh: JoinedMesh, running: RunningKms, name: str, epoch: int, reason: str
) -> None:
    async with operator(running) as ada:
        assert await refusal(rotate(ada, name, epoch)) == reason


async def test_services_neither_rotate_nor_retire_nor_list(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "node", {"models": []}) as (stub, _):
        assert await refusal(rotate(stub, MODEL, 2)) == "ROLE_NOT_ALLOWED"
        assert await refusal(retire(stub, order(mesh, MODEL))) == "ROLE_NOT_ALLOWED"
        assert await refusal(stub.ListKeys(pb.ListKeysRequest(), timeout=10)) == "ROLE_NOT_ALLOWED"


async def test_a_retired_key_is_refused_for_ever(mesh: JoinedMesh, running: RunningKms) -> None:
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "agent", claims) as (stub, _), operator(running) as ada:
        await have_signed(stub, HELD)
        for _ in range(2):
            await retire(ada, order(mesh, HELD))
        assert await refusal(release(stub, HELD, KeyAlgorithm.ED25519, 1)) == "KEY_RETIRED"
        assert await refusal(have_signed(stub, HELD)) == "KEY_RETIRED"
        assert await refusal(state(stub, HELD, 1)) == "KEY_RETIRED"
        assert await refusal(rotate(ada, HELD, 2)) == "KEY_RETIRED"
    retired = [body for _, body in running.log.entries if body["decision"] == "retired"]
    assert [body["cause"] for body in retired] == [f"order:{order(mesh, HELD).order.digest.hex()}"]


async def test_the_ledger_brings_the_order_that_ends_a_vaults_key(mesh: JoinedMesh, running: RunningKms) -> None:
    claims = {"hpke_key": ReceiverKey().public.hex()}
    name, ordered = f"ledger-vault/{VAULT}", order(mesh, VAULT, action=ERASE_VAULT)
    async with calling(mesh, running, "ledger", claims) as (stub, _):
        await release(stub, name, KeyAlgorithm.AES_256, 0)
        for _ in range(2):
            await retire(stub, ordered)
        assert await refusal(release(stub, name, KeyAlgorithm.AES_256, 0)) == "KEY_RETIRED"
        await release(stub, "ledger-vault/other", KeyAlgorithm.AES_256, 0)
    retired = [body for _, body in running.log.entries if body["decision"] == "retired"]
    assert [(body["name"], body["order"]) for body in retired] == [(name, jcs.loads(ordered.document))]


async def test_an_order_to_erase_a_vault_ends_no_key_before_the_ledger_brings_it(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    """The vault may be held by then, which the ledger alone knows: what it holds would be erased all the same."""
    name, ordered = f"ledger-vault/{VAULT}", order(mesh, VAULT, action=ERASE_VAULT)
    async with calling(mesh, running, "ledger", {"hpke_key": ReceiverKey().public.hex()}) as (stub, _):
        async with operator(running) as ada:
            assert await refusal(retire(ada, ordered)) == "ORDER_OF_ANOTHER_KIND"
        await release(stub, name, KeyAlgorithm.AES_256, 0)
    assert all(body["decision"] != "retired" for _, body in running.log.entries)


@pytest.mark.parametrize(
    ("changes", "signers", "reason"),
    [
        ({}, (), "ORDER_SIGNATURES_INSUFFICIENT"),
        ({}, (0,), "ORDER_SIGNATURES_INSUFFICIENT"),
        ({"trust_domain": "mesh.other"}, (0, 1), "ORDER_OF_ANOTHER_KIND"),
        ({"not_after": 1}, (0, 1), "ORDER_EXPIRED"),
        ({"subject": "Models"}, (0, 1), "KEY_NAME_MALFORMED"),
        ({"subject": "ledger-keyring"}, (0, 1), "KEY_NOT_RETIRABLE"),
        ({"subject": "ledger-resume"}, (0, 1), "KEY_NOT_RETIRABLE"),
        ({"subject": f"ledger-vault/{VAULT}"}, (0, 1), "KEY_NOT_RETIRABLE"),
        ({"action": ERASE_VAULT, "subject": VAULT}, (0,), "ORDER_SIGNATURES_INSUFFICIENT"),
        ({"action": ERASE_VAULT, "subject": f"{VAULT},2026-03"}, (0, 1), "ORDER_OF_ANOTHER_KIND"),
        ({"action": HOLD_VAULT, "subject": VAULT}, (0, 1), "ORDER_OF_ANOTHER_KIND"),
    ],
)
async def test_an_order_that_is_not_one_retires_nothing(
    mesh: JoinedMesh, running: RunningKms, changes: dict[str, Any], signers: tuple[int, ...], reason: str
) -> None:
    async with operator(running) as ada:
        assert await refusal(retire(ada, order(mesh, HELD, signers, **changes))) == reason
    assert not any(page.retired for page in running.keys.book.pages.keys.values())


async def test_operators_see_every_key_and_no_secret(mesh: JoinedMesh, running: RunningKms) -> None:
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "agent", claims) as (stub, _), operator(running) as ada:
        await have_signed(stub, HELD)
        await release(stub, ENVIRONMENT, KeyAlgorithm.X25519)
        await rotate(ada, HELD, 2)
        await retire(ada, order(mesh, MODEL))
        everything = await ada.ListKeys(pb.ListKeysRequest(), timeout=10)
        first = await ada.ListKeys(pb.ListKeysRequest(page_size=2), timeout=10)
        second = await ada.ListKeys(pb.ListKeysRequest(page_size=2, after=first.next_after), timeout=10)
        assert await refusal(ada.ListKeys(pb.ListKeysRequest(page_size=1001), timeout=10)) == "PAGE_TOO_LARGE"
    assert [(key.name, key.newest_epoch, key.retired, key.algorithm, list(key.roles)) for key in everything.keys] == [
        (HELD, 2, False, pb.KEY_ALGORITHM_ED25519, ["agent"]),
        (ENVIRONMENT, 1, False, pb.KEY_ALGORITHM_X25519, ["agent"]),
        (MODEL, 1, True, pb.KEY_ALGORITHM_AES_256, ["node"]),
    ]
    assert everything.next_after == ""
    assert [*first.keys, *second.keys] == list(everything.keys)
    assert second.next_after == ""


async def test_a_kms_that_has_not_read_the_log_serves_boot_class_keys_alone(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    running.currency_clock.now += 61
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "ledger", claims) as (stub, _):
        assert (await release(stub, "ledger-keyring", KeyAlgorithm.AES_256)).sealed_key
    async with calling(mesh, running, "agent", claims) as (stub, _), operator(running) as ada:
        for use in (
            lambda: release(stub, HELD, KeyAlgorithm.ED25519),
            lambda: have_signed(stub, HELD),
            lambda: state(stub, HELD),
            lambda: rotate(ada, MODEL, 2),
            lambda: retire(ada, order(mesh, MODEL)),
            lambda: ada.ListKeys(pb.ListKeysRequest(), timeout=10),
        ):
            assert await refusal(use()) == "KEY_STATE_BEHIND"
        running.currency.heard()
        assert (await have_signed(stub, HELD)).signature


async def test_refused_requests_use_no_room_and_one_rule_has_only_so_much(
    mesh: JoinedMesh, running: RunningKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kms.book._MAX_UNDER_ONE_RULE", 2)
    claims = {"hpke_key": ReceiverKey().public.hex(), "models": []}
    async with calling(mesh, running, "node", claims) as (stub, _), calling(mesh, running, "agent") as (agent, _):
        for number in range(3):
            assert await refusal(release(stub, f"models/{number}", KeyAlgorithm.X25519)) == "KEY_ALGORITHM_MISMATCH"
        assert running.keys.book.pages.keys == {}
        for number in range(2):
            await release(stub, f"models/{number}", KeyAlgorithm.AES_256)
        assert await refusal(release(stub, "models/2", KeyAlgorithm.AES_256)) == "KEY_BOOK_FULL"
        await release(stub, "models/1", KeyAlgorithm.AES_256)
        assert (await have_signed(agent, HELD)).signature  # The room of others is theirs.


async def test_a_key_that_ended_while_the_ledger_was_waited_for_goes_to_nobody(
    mesh: JoinedMesh, running: RunningKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = DecisionLog.commit

    async def slow(log: DecisionLog, kind: Kind, body: Any, **named: Any) -> None:
        await commit(log, kind, body, **named)
        if body["decision"] in ("released", "signed"):
            await running.keys.book.hear([Change(body["name"], None, 1, "kms", "order", 1, b"{}")], Place())

    monkeypatch.setattr(DecisionLog, "commit", slow)
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with calling(mesh, running, "agent", claims) as (stub, _):
        assert await refusal(release(stub, HELD, KeyAlgorithm.ED25519)) == "KEY_RETIRED"
        assert await refusal(have_signed(stub, SIGNED_FOR)) == "KEY_RETIRED"
