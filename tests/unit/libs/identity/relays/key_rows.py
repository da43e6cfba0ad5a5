"""Keys and statements about keys: for another receiver, name, epoch or algorithm, or by another CA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.identity.agent_key import AgentKey
from libs.identity.sealed import ReceiverKey, release_info, seal
from libs.policy.custody import KeyStatement, sign_key_statement, verify_key_statement, verify_key_use
from libs.policy.releases import KeyAlgorithm
from libs.policy.statement import Statement, sign_statement
from libs.rpc.errors import remote_errors
from tests.fakes.joined_mesh import TRUST_DOMAIN
from tests.fakes.lying_kms import LyingKms, saying
from tests.fakes.running_kms import running_kms
from tests.unit.libs.identity.relays.connection_rows import ANOTHER_KIND
from tests.unit.libs.identity.relays.ground import Ground
from tests.unit.libs.identity.relays.row import Attack, Row

NODE = f"spiffe://{TRUST_DOMAIN}/node/1"
_SECRET = bytes(range(32))
_WANTED = ("models/a", 2, NODE, KeyAlgorithm.AES_256)


def opening(*sealed_for: Any) -> Attack:
    """A key that the receiver asked for, sealed to its own key but for something else."""

    async def attack(ground: Ground) -> None:
        receiver = ReceiverKey()
        receiver.open(seal(_SECRET, receiver.public.hex(), release_info(*sealed_for)), release_info(*_WANTED))

    return attack


async def sealed_to_another(ground: Ground) -> None:
    """What was released to one is passed on to another."""
    sealed = seal(_SECRET, ReceiverKey().public.hex(), release_info(*_WANTED))
    ReceiverKey().open(sealed, release_info(*_WANTED))


async def opened_again_as_the_root(ground: Ground) -> None:
    """A released key in the place of a root: what a seal is for is part of what it is bound to."""
    receiver = ReceiverKey()
    sealed = seal(_SECRET, receiver.public.hex(), release_info(*_WANTED))
    receiver.open(sealed, b"teemesh/join/v1\0" + bytes(32) + NODE.encode())


def asking(
    role: str, name: str, algorithm: KeyAlgorithm, claims: dict[str, Any] | None = None, epoch: int = 0
) -> Attack:
    """A member that the KMS has appraised asks for a key."""

    async def attack(ground: Ground) -> None:
        running = await ground.running()
        said = {"hpke_key": ReceiverKey().public.hex()} if claims is None else claims
        member = await ground.member(role, claims=said)
        stub = pb_grpc.KmsServiceStub(await member.peer("kms", running.target).channel(10))
        number = pb.KeyAlgorithm.ValueType(algorithm.number)
        with remote_errors():
            await stub.ReleaseKey(pb.ReleaseKeyRequest(name=name, epoch=epoch, algorithm=number), timeout=10)

    return attack


async def from_a_kms_that_may_have_gone_back(ground: Ground) -> None:
    (await ground.running()).currency_clock.now += 61
    await asking("agent", "agents/claims", KeyAlgorithm.ED25519)(ground)


async def signed_for_another(ground: Ground) -> None:
    """The KMS says who asked: not this workload, but another of its name and code."""
    running = await ground.running()
    asking, waiting = await ground.member("agent"), await ground.member("agent", instance="2")
    await AgentKey("agents/letters", asking.peer("kms", running.target), waiting.identity).sign(b"the claim is granted")


def signed_with_a_statement(**changes: Any) -> Attack:
    """The KMS signs, and says something else of the signature than is so."""

    async def attack(ground: Ground) -> None:
        lying = partial(LyingKms, kms=ground.kms, bend=saying(**changes))
        running = await ground.enter(running_kms(ground.mesh, ground.kms, lying))
        member = await ground.member("agent")
        await AgentKey("agents/letters", member.peer("kms", running.target), member.identity).sign(b"granted")

    return attack


def stated(sign: Callable[[Ground, KeyStatement], tuple[bytes, bytes]]) -> Attack:
    async def attack(ground: Ground) -> None:
        verify_key_statement(*sign(ground, _statement()), ground.kms.ca.spki)

    return attack


def under(ca_spki: bytes) -> Attack:
    async def attack(ground: Ground) -> None:
        statement = _statement()
        verify_key_statement(statement.document, sign_key_statement(statement, ground.kms.ca.key), ca_spki)

    return attack


def _statement() -> KeyStatement:
    roles = frozenset({"agent"})
    return KeyStatement(TRUST_DOMAIN, "agents/a", 1, 2, KeyAlgorithm.ED25519, b"spki", roles, 1, bytes(32), 5)


def by_another_ca(ground: Ground, statement: KeyStatement) -> tuple[bytes, bytes]:
    return statement.document, sign_key_statement(statement, ground.mesh.kms("other", root=bytes(32)).ca.key)


def about_another_key(ground: Ground, statement: KeyStatement) -> tuple[bytes, bytes]:
    other = replace(statement, public_key=b"other")
    return other.document, sign_key_statement(statement, ground.kms.ca.key)


def in_another_form(ground: Ground, statement: KeyStatement) -> tuple[bytes, bytes]:
    return _signed(ground, statement.document.replace(b":", b": ", 1))


def of_no_form(ground: Ground, statement: KeyStatement) -> tuple[bytes, bytes]:
    return _signed(ground, b"statement")


def _signed(ground: Ground, document: bytes) -> tuple[bytes, bytes]:
    signature = ground.kms.ca.key.sign(b"teemesh/key/v1\0" + document, ec.ECDSA(hashes.SHA256()))
    return document, signature


def on_the_policy(ground: Ground, statement: KeyStatement) -> tuple[bytes, bytes]:
    """What the same CA said of something else."""
    said = Statement(1, bytes(32), 0, 1)
    return said.document, sign_statement(said, ground.kms.ca.key)


async def of_a_key_as_of_a_use(ground: Ground) -> None:
    statement = _statement()
    verify_key_use(statement.document, sign_key_statement(statement, ground.kms.ca.key), ground.kms.ca.spki)


ROWS = [
    Row("a key sealed to another receiver", "SEALED_KEY_REFUSED", sealed_to_another),
    Row("a key sealed for another name", "SEALED_KEY_REFUSED", opening("models/b", *_WANTED[1:])),
    Row("a key sealed for another epoch", "SEALED_KEY_REFUSED", opening("models/a", 1, *_WANTED[2:])),
    Row("a key sealed for another instance", "SEALED_KEY_REFUSED", opening(*_WANTED[:2], NODE[:-1] + "2", _WANTED[3])),
    Row("a key sealed for another algorithm", "SEALED_KEY_REFUSED", opening(*_WANTED[:3], KeyAlgorithm.P_256)),
    Row("a released key in the place of a root", "SEALED_KEY_REFUSED", opened_again_as_the_root),
    Row(
        "a key without anything to seal it to",
        "HPKE_KEY_MISSING",
        asking("agent", "agents/claims", KeyAlgorithm.ED25519, {}),
    ),
    Row(
        "a key sealed to what is no key of both kinds",
        "HPKE_KEY_MISSING",
        asking("agent", "agents/claims", KeyAlgorithm.ED25519, {"hpke_key": "ab" * 32}),
    ),
    Row("another role's key", "KEY_NOT_ALLOWED", asking("router", "agents/claims", KeyAlgorithm.ED25519)),
    Row(
        "a key of the boot class by another than the ledger",
        "KEY_NOT_ALLOWED",
        asking("router", "ledger-keyring", KeyAlgorithm.AES_256),
    ),
    Row("a key that no rule is about", "KEY_NOT_ALLOWED", asking("agent", "agents/other", KeyAlgorithm.AES_256)),
    Row("a key for another algorithm", "KEY_ALGORITHM_MISMATCH", asking("agent", "agents/claims", KeyAlgorithm.P_256)),
    Row("a key that never leaves the KMS", "KEY_NOT_RELEASED", asking("agent", "agents/letters", KeyAlgorithm.P_256)),
    Row(
        "a key of an epoch that is not there",
        "KEY_EPOCH_UNKNOWN",
        asking("agent", "agents/claims", KeyAlgorithm.ED25519, epoch=9),
    ),
    Row("a key of a KMS that may have gone back", "KEY_STATE_BEHIND", from_a_kms_that_may_have_gone_back),
    Row("a signature that another workload asked for", "SIGNED_FOR_ANOTHER", signed_for_another),
    Row("a signature by another key", "SIGNED_FOR_ANOTHER", signed_with_a_statement(name="agents/claims")),
    Row(
        "a signature over another message",
        "MESSAGE_SIGNATURE_INVALID",
        signed_with_a_statement(message_sha256=bytes(32)),
    ),
    Row("a key statement of another CA", "KEY_STATEMENT_SIGNATURE_INVALID", stated(by_another_ca)),
    Row("a key statement with another key in it", "KEY_STATEMENT_SIGNATURE_INVALID", stated(about_another_key)),
    Row("a policy statement in the place of a key's", "KEY_STATEMENT_SIGNATURE_INVALID", stated(on_the_policy)),
    Row("a statement on a key in the place of one on its use", "KEY_STATEMENT_SIGNATURE_INVALID", of_a_key_as_of_a_use),
    Row("a key statement in another form of its words", "KEY_STATEMENT_MALFORMED", stated(in_another_form)),
    Row("a key statement under a CA key of another kind", "KEY_STATEMENT_SIGNATURE_INVALID", under(ANOTHER_KIND)),
    Row("a key statement under what is no key", "KEY_STATEMENT_SIGNATURE_INVALID", under(b"key")),
    Row("a key statement that is none", "KEY_STATEMENT_MALFORMED", stated(of_no_form)),
]
