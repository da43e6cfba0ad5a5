from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs import jcs
from libs.errors import MeshError
from libs.identity.certificate import spki_of
from libs.policy.custody import (
    KeyStatement,
    KeyUse,
    sign_key_statement,
    sign_key_use,
    verify_key_statement,
    verify_key_use,
)
from libs.policy.releases import KeyAlgorithm

CA = ec.generate_private_key(ec.SECP256R1())
SPKI = spki_of(CA.public_key())
_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
STATEMENT = KeyStatement(
    "mesh.test", "agents/a", 1, 2, KeyAlgorithm.ED25519, b"spki", frozenset({"agent"}), 1, bytes(32), 5
)
USE = KeyUse(
    trust_domain="mesh.test",
    name="agents/a",
    epoch=1,
    algorithm=KeyAlgorithm.P_256,
    public_key=b"spki",
    message_sha256=bytes(32),
    signature_sha256=bytes(32),
    spiffe_id="spiffe://mesh.test/agent/1",
    evidence_sha256=bytes(32),
    policy_version=1,
    policy_digest=bytes(32),
    time_ms=5,
)


def raw(context: bytes, document: bytes) -> bytes:
    return CA.sign(context + document, ec.ECDSA(hashes.SHA256()))


def test_what_the_ca_said_is_read_as_it_said_it() -> None:
    assert verify_key_statement(STATEMENT.document, sign_key_statement(STATEMENT, CA), SPKI) == STATEMENT
    assert verify_key_use(USE.document, sign_key_use(USE, CA), SPKI) == USE


def test_a_statement_of_one_kind_is_none_of_another() -> None:
    with pytest.raises(MeshError) as refusal:
        verify_key_use(USE.document, raw(b"teemesh/key/v1\0", USE.document), SPKI)
    assert refusal.value.reason == "KEY_STATEMENT_SIGNATURE_INVALID"
    with pytest.raises(MeshError) as refusal:
        verify_key_statement(STATEMENT.document, raw(b"teemesh/key-use/v1\0", STATEMENT.document), SPKI)
    assert refusal.value.reason == "KEY_STATEMENT_SIGNATURE_INVALID"


def test_another_ca_and_other_words_are_refused() -> None:
    signature = sign_key_use(USE, CA)
    stranger = ec.generate_private_key(ec.SECP256R1())
    larger = ec.generate_private_key(ec.SECP384R1())
    for document, made, spki in (
        (USE.document, signature, spki_of(stranger.public_key())),
        (replace(USE, spiffe_id="spiffe://mesh.test/agent/2").document, signature, SPKI),
        (USE.document, sign_key_use(USE, stranger), SPKI),
        (USE.document, signature[:-1], SPKI),
        (USE.document, signature, b"no key"),
        (USE.document, sign_key_use(USE, larger), larger.public_key().public_bytes(*_SPKI)),
    ):
        with pytest.raises(MeshError) as refusal:
            verify_key_use(document, made, spki)
        assert refusal.value.reason == "KEY_STATEMENT_SIGNATURE_INVALID"


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"epoch": 0},
        {"name": "A"},
        {"algorithm": "rsa"},
        {"public_key": ""},
        {"evidence_sha256": "00"},
        {"spiffe_id": "https://mesh.test"},
        {"more": 1},
    ],
)
def test_signed_bytes_that_are_no_statement_are_refused(changes: dict[str, object]) -> None:
    document = jcs.dumps({**jcs.loads_object(USE.document), **changes})
    with pytest.raises(MeshError) as refusal:
        verify_key_use(document, raw(b"teemesh/key-use/v1\0", document), SPKI)
    assert refusal.value.reason == "KEY_STATEMENT_MALFORMED"
    for loose in (USE.document + b" ", b"{}", b"null", b""):
        with pytest.raises(MeshError) as refusal:
            verify_key_use(loose, raw(b"teemesh/key-use/v1\0", loose), SPKI)
        assert refusal.value.reason == "KEY_STATEMENT_MALFORMED"
