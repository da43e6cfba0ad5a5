from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.aci import keyset as keysets
from libs.aci.keyset import (
    KeyRolesMixed,
    KeysetExpired,
    KeysetLifetimeImplausible,
    KeysetMalformed,
    PublicKey,
    PublishedKey,
    ReceiptKeyUnknown,
    TlsKey,
)
from tests.unit.libs.aci.documents import NOW, RECEIPT_KEY, keyset


def test_document_reads_back_to_the_same_keyset() -> None:
    assert keysets.parse(keyset().document()) == keyset()


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"subject": 7},
        {"not_after": -1},
        {"not_after": True},
        {"not_after": "1"},
        {"receipt_signing_keys": {}},
        {"receipt_signing_keys": [{"key_id": "a", "algo": "ed25519", "public_key": "AB" * 32}]},
        {"receipt_signing_keys": [{"key_id": "a", "algo": "ed25519", "public_key": "ab" * 31}]},
        {"receipt_signing_keys": [{"key_id": "a", "algo": "ed25519"}]},
        {"receipt_signing_keys": [{"key_id": "a", "algo": "x", "public_key": "y"}] * 2},
        {"tls_public_keys": [{"spki_sha256": "ab"}]},
        {"tls_public_keys": [{"spki_sha256": "ab" * 32, "domain": None}]},
        {"tls_public_keys": [{"spki_sha256": "ab" * 32, "domain": "Router.Test"}]},
        {"tls_public_keys": [{"spki_sha256": "ab" * 32, "note": "x"}]},
    ],
)
def test_any_other_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(KeysetMalformed):
        keysets.parse(keyset().document() | change)


def test_a_missing_member_is_refused_even_when_it_could_be_null() -> None:
    document = keyset().document()
    del document["subject"]
    with pytest.raises(KeysetMalformed, match="subject is missing"):
        keysets.parse(document)


def test_receipt_key_in_another_role_is_refused() -> None:
    raw = RECEIPT_KEY.public_key().public_bytes_raw()
    spki = RECEIPT_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(KeyRolesMixed):
        keysets.build(
            subject=None,
            not_after=NOW,
            receipt_keys={"r": raw},
            tls_keys=(),
            e2ee_keys=(PublicKey("e", "x25519", raw.hex()),),
        )
    with pytest.raises(KeyRolesMixed):
        keysets.build(
            subject=None,
            not_after=NOW,
            receipt_keys={"r": raw},
            tls_keys=(TlsKey(hashlib.sha256(spki).hexdigest()),),
        )


def test_key_of_an_unknown_algorithm_is_kept_in_the_digest_and_never_selected() -> None:
    document = keyset().document()
    document["receipt_signing_keys"].append({"key_id": "new", "algo": "ml-dsa-65", "public_key": "opaque"})
    parsed = keysets.parse(document)
    assert parsed.document() == document
    with pytest.raises(ReceiptKeyUnknown):
        parsed.receipt_key("new")


def test_pins_are_those_of_the_host_and_those_for_all_hosts() -> None:
    assert keyset().pins("ROUTER.test") == {"cd" * 32, "ef" * 32}
    assert keyset().pins("other.test") == {"ef" * 32}


def test_keyset_is_refused_once_expired_or_when_it_lives_too_long() -> None:
    current = keyset(not_after=NOW + 100)
    keysets.verify_usable(current, now=NOW, longest_seconds=100)
    with pytest.raises(KeysetExpired):
        keysets.verify_usable(current, now=NOW + 100, longest_seconds=100)
    with pytest.raises(KeysetLifetimeImplausible):
        keysets.verify_usable(current, now=NOW, longest_seconds=99)


def test_keyset_with_a_published_test_key_is_refused() -> None:
    published = bytes.fromhex("8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394")
    with pytest.raises(PublishedKey):
        keysets.verify_usable(keyset(receipt_key=published), now=NOW, longest_seconds=10**6)
