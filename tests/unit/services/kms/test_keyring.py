from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from libs.policy.releases import KeyAlgorithm
from services.kms.keyring import Keyring

ROOT = bytes(range(32))
KEYRING = Keyring(ROOT)
AES = KeyAlgorithm.AES_256


def test_keys_depend_on_root_name_epoch_and_algorithm_and_on_nothing_else() -> None:
    key = KEYRING.material("a", 1, AES)
    assert key == Keyring(ROOT).material("a", 1, AES)
    others = {
        KEYRING.material("b", 1, AES),
        KEYRING.material("a", 2, AES),
        Keyring(bytes(32)).material("a", 1, AES),
        *(KEYRING.material("a", 1, algorithm) for algorithm in KeyAlgorithm),
    }
    assert len(others | {key}) == 7


def test_the_derivation_is_what_it_was() -> None:
    """Every sealed entry of a log hangs on it: a change here is the loss of all of them."""
    assert (
        KEYRING.material("ledger-keyring", 1, AES).hex()
        == "129908d4de0dd46498eca5cef243a25cec0c6f9b4233ca7f62f1bd977442c97d"
    )
    assert (
        f"{KEYRING.ca_key.private_numbers().private_value:064x}"
        == "e49749d974049ca980df1596a98788f8c1b3c888540c3fd6ecf6a926477e1189"
    )


def test_no_name_that_a_policy_can_write_gives_a_key_of_the_kms_itself() -> None:
    own = {KEYRING.ca_key.private_numbers().private_value.to_bytes(32, "big"), KEYRING.state_key}
    for name in ("mesh-ca", "kms-state"):
        assert not own & {KEYRING.material(name, 1, algorithm) for algorithm in KeyAlgorithm}


def test_parts_that_run_into_their_neighbours_do_not_collide() -> None:
    """Without length prefixes these would be the same bytes, their parts cut elsewhere."""
    one = KEYRING._derive("a", 0x62000000, "release", "aes-256", 32)
    assert one != KEYRING._derive("ab", ord("r"), "elease", "aes-256", 32)
    assert one != KEYRING._derive("a", 0x62000000, "releaseaes", "-256", 32)


def test_a_holder_of_the_material_has_the_key_that_is_stated() -> None:
    for algorithm in (KeyAlgorithm.X25519, KeyAlgorithm.ED25519, KeyAlgorithm.P_256):
        material = KEYRING.material("a", 1, algorithm)
        public = serialization.load_der_public_key(KEYRING.public_key("a", 1, algorithm))
        match public:
            case X25519PublicKey():
                assert X25519PrivateKey.from_private_bytes(material).public_key() == public
            case Ed25519PublicKey():
                public.verify(KEYRING.sign("a", 1, algorithm, b"message"), b"message")
            case ec.EllipticCurvePublicKey():
                private = ec.derive_private_key(int.from_bytes(material, "big"), ec.SECP256R1())
                assert private.public_key() == public
                public.verify(KEYRING.sign("a", 1, algorithm, b"message"), b"message", ec.ECDSA(hashes.SHA256()))


def test_another_epoch_does_not_verify() -> None:
    public = serialization.load_der_public_key(KEYRING.public_key("a", 1, KeyAlgorithm.ED25519))
    assert isinstance(public, Ed25519PublicKey)
    with pytest.raises(InvalidSignature):
        public.verify(KEYRING.sign("a", 2, KeyAlgorithm.ED25519, b"message"), b"message")


def test_what_cannot_be_done_with_a_key_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no public half"):
        KEYRING.public_key("a", 1, AES)
    with pytest.raises(ValueError, match="nothing is signed"):
        KEYRING.sign("a", 1, KeyAlgorithm.X25519, b"")
