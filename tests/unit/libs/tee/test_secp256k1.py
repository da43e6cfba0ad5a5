from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eth_keys.backends.native.main import NativeECCBackend
from eth_keys.datatypes import PrivateKey

from libs.tee.secp256k1 import is_public_key, public_key_of

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
KEY = bytes(range(1, 33))
PUBLIC_KEY = PrivateKey(KEY, backend=NativeECCBackend()).public_key.to_compressed_bytes()


def test_public_keys_agree_with_another_implementation() -> None:
    assert public_key_of(KEY) == PUBLIC_KEY


@pytest.mark.parametrize("scalar", [bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_a_scalar_out_of_range_has_no_public_key(scalar: bytes) -> None:
    with pytest.raises(ValueError, match=r"private_value|Invalid EC key"):
        public_key_of(scalar)


def test_only_compressed_points_of_the_curve_are_public_keys() -> None:
    assert is_public_key(PUBLIC_KEY)
    off_the_curve = b"\2" + (5).to_bytes(32, "big")
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), PUBLIC_KEY)
    uncompressed = point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    for other in (
        uncompressed,
        b"",
        b"\0",
        PUBLIC_KEY[:32],
        PUBLIC_KEY + b"\0",
        b"\4" + PUBLIC_KEY[1:],
        off_the_curve,
        bytes(33),
    ):
        assert not is_public_key(other)
