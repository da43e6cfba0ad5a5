from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs
from libs.policy.statement import (
    Statement,
    StatementMalformed,
    StatementSignatureInvalid,
    sign_statement,
    verify_statement,
)

KEY = ec.derive_private_key(11, ec.SECP256R1())
STATEMENT = Statement(version=3, digest=b"d" * 32, revocation=0, time_ms=1_800_000_000_000)


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


SPKI = _spki(KEY.public_key())


def _sign(data: bytes) -> bytes:
    return KEY.sign(b"teemesh/statement/v1\0" + data, ec.ECDSA(hashes.SHA256()))


def test_what_the_ca_states_is_read_back() -> None:
    assert verify_statement(STATEMENT.document, sign_statement(STATEMENT, KEY), SPKI) == STATEMENT
    assert verify_statement(STATEMENT.document, _sign(STATEMENT.document), SPKI) == STATEMENT


def test_another_keys_statement_is_refused() -> None:
    other = ec.derive_private_key(12, ec.SECP256R1())
    with pytest.raises(StatementSignatureInvalid) as refusal:
        verify_statement(STATEMENT.document, sign_statement(STATEMENT, other), SPKI)
    assert refusal.value.reason == "STATEMENT_SIGNATURE_INVALID"


def test_a_changed_statement_is_refused() -> None:
    later = Statement(4, STATEMENT.digest, STATEMENT.revocation, STATEMENT.time_ms)
    with pytest.raises(StatementSignatureInvalid):
        verify_statement(later.document, sign_statement(STATEMENT, KEY), SPKI)


def test_a_signature_made_for_something_else_is_refused() -> None:
    bare = KEY.sign(STATEMENT.document, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(StatementSignatureInvalid):
        verify_statement(STATEMENT.document, bare, SPKI)


def test_a_ca_key_of_another_kind_is_refused() -> None:
    for spki in (
        b"",
        SPKI.replace(bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0205")),
        _spki(ec.derive_private_key(11, ec.SECP384R1()).public_key()),
        Ed25519PrivateKey.from_private_bytes(b"k" * 32)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
    ):
        with pytest.raises(StatementSignatureInvalid):
            verify_statement(STATEMENT.document, sign_statement(STATEMENT, KEY), spki)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"version": 0},
        {"digest": "ab"},
        {"revocation": -1},
        {"revocations_digest": None},
        {"time_ms": None},
        {"extra": 1},
    ],
)
def test_a_signed_statement_that_is_malformed_is_refused(change: dict[str, object]) -> None:
    data = jcs.dumps({**jcs.loads(STATEMENT.document), **change})
    with pytest.raises(StatementMalformed) as refusal:
        verify_statement(data, _sign(data), SPKI)
    assert refusal.value.reason == "STATEMENT_MALFORMED"


def test_a_statement_that_names_no_set_of_revocations_is_refused() -> None:
    members = jcs.loads(STATEMENT.document)
    del members["revocations_digest"]
    data = jcs.dumps(members)
    with pytest.raises(StatementMalformed, match="revocations_digest"):
        verify_statement(data, _sign(data), SPKI)


def test_only_the_canonical_form_counts() -> None:
    data = STATEMENT.document.replace(b",", b", ")
    with pytest.raises(StatementMalformed, match="canonical"):
        verify_statement(data, _sign(data), SPKI)


@given(data=st.binary(max_size=100))
def test_hostile_signed_bytes_raise_only_the_refusal(data: bytes) -> None:
    with pytest.raises(StatementMalformed):
        verify_statement(data, _sign(data), SPKI)


@given(signature=st.binary(max_size=100))
def test_hostile_signatures_raise_only_the_refusal(signature: bytes) -> None:
    with pytest.raises(StatementSignatureInvalid):
        verify_statement(STATEMENT.document, signature, SPKI)
