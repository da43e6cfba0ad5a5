"""An agent's own key: from a signature anyone walks to the measurement of the workload that asked, offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from teemesh.kms.v1 import kms_pb2

from libs import jcs
from libs.audit.agent_signature import SignedMessage, parse_signed_message, verify_signed_message
from libs.errors import MeshError
from libs.identity.agent_key import AgentKey
from libs.identity.environment import open_environment, seal_environment
from libs.identity.sealed import ReceiverKey
from libs.policy.custody import KeyUse, sign_key_use, verify_key_statement, verify_key_use
from libs.policy.document import Policy
from libs.policy.releases import KeyAlgorithm
from services.cli.__main__ import main
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.kms_callers import operator
from tests.fakes.lying_kms import Bend, LyingKms, saying, with_signature
from tests.fakes.running_kms import running_kms

HELD = "agents/claims"
SIGNED_FOR = "agents/letters"
ENVIRONMENT = "environment/agent"
MESSAGE = b"the claim is granted"


@dataclass(frozen=True, slots=True)
class Desk:
    """A signed message, and all that it takes to lie about it."""

    mesh: JoinedMesh
    kms: KmsCore
    policy: Policy
    signed: SignedMessage
    other: SignedMessage
    """Of the same agent, by another key."""
    router_evidence: bytes

    @property
    def use(self) -> KeyUse:
        return verify_key_use(self.signed.statement, self.signed.statement_signature, self.kms.ca.spki)

    def saying(self, use: KeyUse, kms: KmsCore | None = None) -> SignedMessage:
        """The message with another statement, signed by the CA or, where given, by another mesh's."""
        key = (kms or self.kms).ca.key
        return replace(self.signed, statement=use.document, statement_signature=sign_key_use(use, key))


@pytest.fixture
async def desk(mesh: JoinedMesh, kms: KmsCore) -> Desk:
    claims = {"hpke_key": ReceiverKey().public.hex()}
    async with (
        running_kms(mesh, kms) as running,
        mesh.member("agent", kms, claims=claims) as agent,
        mesh.member("router", kms) as router,
    ):
        peer = agent.peer("kms", running.target)
        signed = await AgentKey(SIGNED_FOR, peer, agent.identity).sign(MESSAGE)
        other = await AgentKey(HELD, peer, agent.identity).sign(MESSAGE)
        return Desk(mesh, kms, kms.policy.current, signed, other, router.identity.current.evidence.document)


async def test_a_signature_leads_to_the_measurement_of_who_asked(desk: Desk) -> None:
    for signed, name in ((desk.signed, SIGNED_FOR), (desk.other, HELD)):
        again = parse_signed_message(signed.encode())
        assert again == signed
        verified = verify_signed_message(again, MESSAGE, desk.policy)
        assert (verified.use.name, verified.use.spiffe_id) == (name, f"spiffe://{TRUST_DOMAIN}/agent/1")
        assert verified.workload.measurement.compose_hash == desk.mesh.tds["agent"].compose_hash.hex()
        assert verified.kms.measurement.compose_hash == desk.mesh.tds["kms"].compose_hash.hex()


async def test_a_key_that_was_received_is_the_one_that_the_kms_signs_with(mesh: JoinedMesh, kms: KmsCore) -> None:
    receiver = ReceiverKey()
    async with (
        running_kms(mesh, kms) as running,
        mesh.member("agent", kms, claims={"hpke_key": receiver.public.hex()}) as agent,
    ):
        key = AgentKey(HELD, agent.peer("kms", running.target), agent.identity)
        private = await key.receive(KeyAlgorithm.ED25519, receiver)
        signed = await key.sign(MESSAGE)
        with pytest.raises(MeshError) as error:
            await AgentKey(SIGNED_FOR, agent.peer("kms", running.target), agent.identity).receive(
                KeyAlgorithm.P_256, receiver
            )
    assert error.value.reason == "KEY_NOT_RELEASED"
    assert isinstance(private, Ed25519PrivateKey)
    assert private.sign(MESSAGE) == signed.signature  # Ed25519 is deterministic.
    stated = verify_key_use(signed.statement, signed.statement_signature, kms.ca.spki).public_key
    assert private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == stated


async def test_an_environment_sealed_for_a_workload_is_opened_by_it(mesh: JoinedMesh, kms: KmsCore) -> None:
    receiver = ReceiverKey()
    async with (
        running_kms(mesh, kms) as running,
        mesh.member("agent", kms, claims={"hpke_key": receiver.public.hex()}) as agent,
        operator(running) as ada,
    ):
        stated = await ada.GetPublicKey(kms_pb2.GetPublicKeyRequest(name=ENVIRONMENT), timeout=10)
        statement = verify_key_statement(stated.statement, stated.statement_signature, kms.ca.spki)
        public = serialization.load_der_public_key(statement.public_key)
        assert isinstance(public, X25519PublicKey)
        sealed = seal_environment({"TOKEN": "secret"}, public.public_bytes_raw())
        key = AgentKey(ENVIRONMENT, agent.peer("kms", running.target), agent.identity)
        private = await key.receive(KeyAlgorithm.X25519, receiver)
        assert isinstance(private, X25519PrivateKey)
        assert open_environment(sealed, private, {"TOKEN"}) == {"TOKEN": "secret"}
        with pytest.raises(MeshError) as error:
            await key.sign(b"")
    assert error.value.reason == "KEY_SIGNS_NOT"


def test_anyone_verifies_a_signed_message_from_files(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "signed.json": desk.signed.encode(),
        "message": MESSAGE,
        "policy.json": desk.mesh.seed,
        "compose.json": desk.mesh.tds["agent"].app_compose.encode(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    arguments = ["kms", "verify", str(tmp_path / "signed.json"), str(tmp_path / "message")]
    pins = ["--policy", str(tmp_path / "policy.json"), "--compose", str(tmp_path / "compose.json")]
    assert main([*arguments, *pins]) == 0
    said = capsys.readouterr().out
    assert f"asked by    spiffe://{TRUST_DOMAIN}/agent/1" in said
    assert desk.mesh.tds["agent"].compose_hash.hex() in said
    (tmp_path / "message").write_bytes(MESSAGE + b"!")
    assert main([*arguments, *pins]) == 1
    assert "MESSAGE_SIGNATURE_INVALID" in capsys.readouterr().err
    (tmp_path / "message").write_bytes(MESSAGE)
    unsigned = desk.mesh.sign(desk.mesh.draft, signers=(0,))
    (tmp_path / "policy.json").write_bytes(unsigned)
    assert main([*arguments, *pins]) == 1
    assert "POLICY_SIGNATURES_INSUFFICIENT" in capsys.readouterr().err


Lie = Callable[[Desk], SignedMessage]
LIES: dict[str, tuple[str, Lie]] = {
    "another signature": ("MESSAGE_SIGNATURE_INVALID", lambda d: replace(d.signed, signature=d.other.signature)),
    "a signature that the statement names and the key did not make": (
        "MESSAGE_SIGNATURE_INVALID",
        lambda d: replace(
            d.saying(replace(d.use, signature_sha256=sha256(d.other.signature).digest())), signature=d.other.signature
        ),
    ),
    "a statement about another signature": (
        "MESSAGE_SIGNATURE_INVALID",
        lambda d: d.saying(replace(d.use, signature_sha256=bytes(32))),
    ),
    "a statement about another message": (
        "MESSAGE_SIGNATURE_INVALID",
        lambda d: d.saying(replace(d.use, message_sha256=bytes(32))),
    ),
    "a key that does not sign": (
        "MESSAGE_SIGNATURE_INVALID",
        lambda d: d.saying(replace(d.use, public_key=d.kms.keyring.public_key(SIGNED_FOR, 1, KeyAlgorithm.X25519))),
    ),
    "bytes that are no key": ("MESSAGE_SIGNATURE_INVALID", lambda d: d.saying(replace(d.use, public_key=b"key"))),
    "the statement of another key of the same agent": (
        "MESSAGE_SIGNATURE_INVALID",
        lambda d: replace(d.signed, statement=d.other.statement, statement_signature=d.other.statement_signature),
    ),
    "a statement that another CA made": (
        "KEY_STATEMENT_SIGNATURE_INVALID",
        lambda d: d.saying(d.use, d.mesh.kms("other", root=bytes(32))),
    ),
    "another CA, statement and all": (
        "CHALLENGE_ISSUER_NOT_TRUSTED",
        lambda d: replace(
            d.saying(d.use, d.mesh.kms("other", root=bytes(32))),
            ca_certificate=d.mesh.kms("other", root=bytes(32)).ca.certificate,
        ),
    ),
    "a CA certificate that is none": ("CA_NOT_ATTESTED", lambda d: replace(d.signed, ca_certificate=b"certificate")),
    "evidence of a service for the KMS's": (
        "MEASUREMENT_NOT_ALLOWED",
        lambda d: replace(d.signed, kms_evidence=d.router_evidence),
    ),
    "evidence of another workload": (
        "SIGNER_NOT_THE_WORKLOAD",
        lambda d: replace(d.signed, evidence=d.router_evidence),
    ),
    "evidence of another workload, as stated": (
        "MEASUREMENT_NOT_ALLOWED",
        lambda d: replace(
            d.saying(replace(d.use, evidence_sha256=sha256(d.router_evidence).digest())), evidence=d.router_evidence
        ),
    ),
    "a workload that policy does not give the key to": (
        "SIGNER_NOT_THE_WORKLOAD",
        lambda d: replace(
            d.saying(
                replace(
                    d.use,
                    spiffe_id=f"spiffe://{TRUST_DOMAIN}/router/1",
                    evidence_sha256=sha256(d.router_evidence).digest(),
                )
            ),
            evidence=d.router_evidence,
        ),
    ),
    "a key that policy has no rule about": (
        "SIGNER_NOT_THE_WORKLOAD",
        lambda d: d.saying(replace(d.use, name="agents/unheard-of")),
    ),
    "a key of another algorithm by policy": (
        "SIGNER_NOT_THE_WORKLOAD",
        lambda d: d.saying(replace(d.use, algorithm=KeyAlgorithm.ED25519)),
    ),
    "another policy": (
        "SIGNED_UNDER_ANOTHER_POLICY",
        lambda d: d.saying(replace(d.use, policy_digest=bytes(32))),
    ),
    "another mesh": (
        "SIGNED_UNDER_ANOTHER_POLICY",
        lambda d: d.saying(replace(d.use, trust_domain="mesh.other")),
    ),
    "a time when the policy did not hold": ("POLICY_NOT_VALID_NOW", lambda d: d.saying(replace(d.use, time_ms=0))),
    "a time when the evidence was too old": (
        "CHALLENGE_TOO_OLD",
        lambda d: d.saying(replace(d.use, time_ms=d.use.time_ms + 3_950_000)),
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_signed_message_that_lies_is_refused(desk: Desk, lie: str) -> None:
    reason, tell = LIES[lie]
    with pytest.raises(MeshError) as error:
        verify_signed_message(tell(desk), MESSAGE, desk.policy)
    assert error.value.reason == reason


async def test_another_message_is_refused(desk: Desk) -> None:
    with pytest.raises(MeshError) as error:
        verify_signed_message(desk.signed, MESSAGE + b"!", desk.policy)
    assert error.value.reason == "MESSAGE_SIGNATURE_INVALID"


async def test_a_kms_that_does_not_bind_its_ca_is_refused(desk: Desk) -> None:
    """Genuine KMS evidence, made before it had this CA."""
    challenge = desk.kms.challenges.issue("certificate")
    key = desk.kms.ca.key
    unbound = desk.mesh.evidence("kms", challenge, key).document
    with pytest.raises(MeshError) as error:
        verify_signed_message(replace(desk.signed, kms_evidence=unbound), MESSAGE, desk.policy)
    assert error.value.reason == "CA_NOT_ATTESTED"


@pytest.mark.parametrize(
    "changes",
    [{"v": 2}, {"signature": ""}, {"evidence": "text"}, {"more": 1}, {"statement": "zz"}, {"ca_certificate": None}],
)
async def test_what_is_no_signed_message_is_refused(desk: Desk, changes: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as error:
        parse_signed_message(jcs.dumps({**jcs.loads_object(desk.signed.encode()), **changes}))
    assert error.value.reason == "SIGNED_MESSAGE_MALFORMED"
    for data in (b"", b"[]", b"{}", b" " * (2 * 1024 * 1024 + 1)):
        with pytest.raises(MeshError):
            parse_signed_message(data)


BENT: dict[str, tuple[str, Bend]] = {
    "by another key": ("SIGNED_FOR_ANOTHER", saying(name=HELD)),
    "for another workload": ("SIGNED_FOR_ANOTHER", saying(spiffe_id=f"spiffe://{TRUST_DOMAIN}/agent/2")),
    "on other evidence": ("SIGNED_FOR_ANOTHER", saying(evidence_sha256=bytes(32))),
    "of another message": ("MESSAGE_SIGNATURE_INVALID", saying(message_sha256=bytes(32))),
    "another signature": ("MESSAGE_SIGNATURE_INVALID", saying(signature_sha256=bytes(32))),
    "that is none by the key": ("MESSAGE_SIGNATURE_INVALID", with_signature(b"signature")),
}


@pytest.mark.parametrize("lie", BENT)
async def test_a_workload_takes_no_signature_of_which_the_kms_says_something_else(
    mesh: JoinedMesh, kms: KmsCore, lie: str
) -> None:
    reason, bend = BENT[lie]
    async with (
        running_kms(mesh, kms, partial(LyingKms, kms=kms, bend=bend)) as running,
        mesh.member("agent", kms) as agent,
    ):
        with pytest.raises(MeshError) as error:
            await AgentKey(SIGNED_FOR, agent.peer("kms", running.target), agent.identity).sign(MESSAGE)
    assert error.value.reason == reason
