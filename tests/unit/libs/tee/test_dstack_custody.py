from __future__ import annotations

from collections.abc import Sequence

import pytest

from libs.tee.dstack_custody import CustodyLinkMissing, CustodyNotProven, claim_v0, verify_chain
from libs.tee.keccak import keccak256
from libs.tee.secp256k1 import public_key_of
from libs.tee.signer_recovery import (
    HighSignatureRefused,
    RecoveryIdRefused,
    SignatureLengthRefused,
    SignerNotRecoverable,
    recover_signer,
)
from services.devtee import secp256k1
from services.devtee.keys import DerivedKey, MockKms
from tests.unit.libs.tee.bench import NOW
from tests.unit.libs.tee.test_signer_recovery import high

APP_ID = b"\x0a" * 20
KMS = MockKms.create(NOW)
KMS_ROOT = secp256k1.compressed_public_key(KMS.root)
APP = KMS.app_keys(APP_ID, NOW)
DERIVED = APP.derive("disk/1", "disk", "secp256k1")
CLAIM = claim_v0("disk", DERIVED.public_key)

UPSTREAM_ROOT = bytes.fromhex("1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b")
"""The application root of dstack's own vectors."""


def verify(
    claim: bytes = CLAIM,
    chain: Sequence[bytes] = DERIVED.signature_chain,
    app_id: bytes = APP_ID,
    kms_root: bytes = KMS_ROOT,
) -> bytes:
    return verify_chain(claim, chain, app_id=app_id, kms_root=kms_root)


def test_link_0_of_dstacks_version_0_vector_is_its_roots() -> None:
    key = bytes.fromhex("52786aa123b0971e283af97f32e25767483d099d66e6c40afeb3a49046b5379e")
    link = bytes.fromhex(
        "c8a3dcf06c4e95bd78a5d7a1c8fcff171fc5848cfae804c6fc11bda4dc5d4062"
        "379995390843827444992c4c0e4bac70f0f878e01b9fc8b98cd7126fe5a3876b01"
    )
    assert recover_signer(keccak256(claim_v0("signing", public_key_of(key))), link) == public_key_of(UPSTREAM_ROOT)


# Its domain is storage-encryption.
VERSION_1_KEY = bytes.fromhex("5510330f86902ddae38c6d89c93a8408019332c17a429e1abd01c4a28d1544a6")
VERSION_1_LINK = bytes.fromhex(
    "5b6193729ce7976ec67863f21692d4b98c69832698aae8e001a7d33a6f818b6e"
    "46ca950725b6e90e8ca9bcf394abd03ce264bf9b7eec1e91693247f9dd53c26901"
)


def upstream_link_1(kms: MockKms) -> bytes:
    """A KMS root's signature over the application root of dstack's vectors."""
    message = b"dstack-kms-issued:" + APP_ID + public_key_of(UPSTREAM_ROOT)
    return secp256k1.sign_recoverable(kms.root, keccak256(message))


def test_a_claim_of_dstacks_version_1_is_not_taken_for_this_one() -> None:
    claim = claim_v0("storage-encryption", public_key_of(VERSION_1_KEY))
    with pytest.raises(CustodyNotProven):
        verify(claim, (VERSION_1_LINK, upstream_link_1(KMS)))


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
def test_a_derived_key_leads_to_the_pinned_root(algorithm: str) -> None:
    derived = APP.derive("disk/1", "disk", algorithm)
    assert verify(claim_v0("disk", derived.public_key), derived.signature_chain) == public_key_of(APP.root)


def foreign(kms: MockKms, app_id: bytes = APP_ID) -> DerivedKey:
    return kms.app_keys(app_id, NOW).derive("disk/1", "disk", "secp256k1")


def test_another_root_is_refused() -> None:
    stranger = MockKms.create(NOW)
    derived = foreign(stranger)
    with pytest.raises(CustodyNotProven) as refusal:
        verify(claim_v0("disk", derived.public_key), derived.signature_chain)
    assert refusal.value.reason == "CUSTODY_NOT_PROVEN"
    with pytest.raises(CustodyNotProven):
        verify(kms_root=secp256k1.compressed_public_key(stranger.root))


def test_another_kms_cannot_vouch_for_the_same_application_root() -> None:
    message = b"dstack-kms-issued:" + APP_ID + public_key_of(APP.root)
    link = secp256k1.sign_recoverable(MockKms.create(NOW).root, keccak256(message))
    with pytest.raises(CustodyNotProven):
        verify(chain=(DERIVED.signature_chain[0], link))


def test_another_application_is_refused() -> None:
    derived = foreign(KMS, b"\x0b" * 20)
    with pytest.raises(CustodyNotProven):
        verify(claim_v0("disk", derived.public_key), derived.signature_chain)
    with pytest.raises(CustodyNotProven):
        verify(app_id=b"\x0b" * 20)


@pytest.mark.parametrize("app_id", [b"", APP_ID[:19], APP_ID + b"\0", bytes(32)])
def test_an_application_id_of_another_length_is_refused(app_id: bytes) -> None:
    # The KMS signed exactly this, and the message would fit: without lengths the parts could be cut elsewhere.
    message = b"dstack-kms-issued:" + app_id + public_key_of(APP.root)
    link = secp256k1.sign_recoverable(KMS.root, keccak256(message))
    with pytest.raises(CustodyNotProven, match="application id has 20 bytes"):
        verify(chain=(DERIVED.signature_chain[0], link), app_id=app_id)


def test_another_purpose_is_refused() -> None:
    with pytest.raises(CustodyNotProven):
        verify(claim_v0("disk2", DERIVED.public_key))


def test_another_key_is_refused() -> None:
    other = APP.derive("disk/2", "disk", "secp256k1")
    with pytest.raises(CustodyNotProven):
        verify(claim_v0("disk", other.public_key))


def test_the_application_root_cannot_vouch_for_itself() -> None:
    link = secp256k1.sign_recoverable(APP.root, keccak256(CLAIM))
    with pytest.raises(CustodyNotProven):
        verify(chain=(link, link))


@pytest.mark.parametrize(
    "chain",
    [
        (),
        DERIVED.signature_chain[:1],
        (*DERIVED.signature_chain, DERIVED.signature_chain[1]),
        (DERIVED.signature_chain[0], b""),
        (b"", DERIVED.signature_chain[1]),
    ],
)
def test_a_missing_or_empty_link_is_refused(chain: Sequence[bytes]) -> None:
    with pytest.raises(CustodyLinkMissing) as refusal:
        verify(chain=chain)
    assert refusal.value.reason == "CUSTODY_LINK_MISSING"


@pytest.mark.parametrize("link", [0, 1])
@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (high, HighSignatureRefused),
        (lambda signature: signature[:64] + b"\2", RecoveryIdRefused),
        (lambda signature: signature[:64], SignatureLengthRefused),
        (lambda signature: signature + b"\0", SignatureLengthRefused),
        (lambda signature: bytes(32) + signature[32:], SignerNotRecoverable),
        (lambda signature: signature[:64] + bytes([signature[64] ^ 1]), CustodyNotProven),
    ],
)
def test_a_bent_link_is_refused_by_its_own_reason(link: int, change: object, refusal: type[Exception]) -> None:
    assert callable(change)
    chain = list(DERIVED.signature_chain)
    chain[link] = change(chain[link])
    with pytest.raises(refusal):
        verify(chain=chain)
