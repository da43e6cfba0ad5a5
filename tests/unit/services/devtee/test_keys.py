from __future__ import annotations

import pytest
from eth_keys.backends.native.main import NativeECCBackend
from eth_keys.datatypes import Signature

from libs.tee.keccak import keccak256
from services.devtee import secp256k1
from services.devtee.keys import AppKeys, MockKms
from services.devtee.machine import Machine, VirtualTd

KNOWN_ROOT = bytes.fromhex("1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b")
HALF_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2


def signer_of(signature: bytes, message: bytes) -> bytes:
    backend = NativeECCBackend()
    recovered = Signature(signature, backend=backend).recover_public_key_from_msg_hash(keccak256(message))
    return recovered.to_compressed_bytes()


def test_a_key_and_its_first_link_match_dstacks_vector(machine: Machine) -> None:
    keys = AppKeys(bytes(20), KNOWN_ROOT, b"", machine.pki.root, "")
    derived = keys.derive("test", "signing", "secp256k1")
    assert derived.key.hex() == "52786aa123b0971e283af97f32e25767483d099d66e6c40afeb3a49046b5379e"
    assert derived.signature_chain[0].hex() == (
        "c8a3dcf06c4e95bd78a5d7a1c8fcff171fc5848cfae804c6fc11bda4dc5d4062"
        "379995390843827444992c4c0e4bac70f0f878e01b9fc8b98cd7126fe5a3876b01"
    )


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
def test_the_chain_leads_from_a_key_to_the_kms_root(machine: Machine, td: VirtualTd, algorithm: str) -> None:
    derived = td.keys.derive("a/b", "use", algorithm)
    app_root = signer_of(derived.signature_chain[0], f"use:{derived.public_key.hex()}".encode())
    kms_root = signer_of(derived.signature_chain[1], b"dstack-kms-issued:" + td.identity.app_id + app_root)
    assert kms_root == secp256k1.compressed_public_key(machine.kms.root)
    for link in derived.signature_chain:
        assert int.from_bytes(link[32:64], "big") <= HALF_ORDER


def test_the_chain_of_another_application_does_not_lead_there(machine: Machine, td: VirtualTd) -> None:
    derived = td.keys.derive("a", "", "")
    app_root = signer_of(derived.signature_chain[0], f":{derived.public_key.hex()}".encode())
    found = signer_of(derived.signature_chain[1], b"dstack-kms-issued:" + bytes(20) + app_root)
    assert found != secp256k1.compressed_public_key(machine.kms.root)


def test_keys_belong_to_the_application_and_last(machine: Machine, now: int) -> None:
    def key(kms: MockKms, app_id: bytes) -> bytes:
        return kms.app_keys(app_id, now).derive("p", "", "").key

    assert key(machine.kms, bytes(20)) == key(machine.kms, bytes(20))
    assert key(machine.kms, bytes(20)) != key(machine.kms, b"\x01" * 20)
    assert key(machine.kms, bytes(20)) != key(MockKms.create(now), bytes(20))


def test_another_algorithm_is_refused(td: VirtualTd) -> None:
    with pytest.raises(ValueError, match="unsupported"):
        td.keys.derive("p", "", "rsa")


def test_a_signature_over_another_digest_is_not_one(td: VirtualTd) -> None:
    key = td.keys.root
    signature = secp256k1.sign_plain(key, b"\x01" * 32)
    public_key = secp256k1.compressed_public_key(key)
    assert secp256k1.is_signed(public_key, b"\x01" * 32, signature)
    assert not secp256k1.is_signed(public_key, b"\x02" * 32, signature)
