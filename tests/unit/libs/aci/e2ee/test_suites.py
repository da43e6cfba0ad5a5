"""One field, sealed and opened; what was changed or is somebody else's is not opened."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.aci.e2ee.suites import SECP256K1_ALGO, SUITES, X25519_ALGO, E2eeKeyInvalid, FieldNotOpened, Suite

SUITE = pytest.mark.parametrize("suite", SUITES.values(), ids=[suite.curve for suite in SUITES.values()])
AAD = b"associated"


@SUITE
def test_a_field_is_opened_by_its_key(suite: Suite) -> None:
    key = suite.key()
    assert suite.open(key, suite.seal(key.public, b"secret", AAD), AAD) == b"secret"


@SUITE
def test_no_two_fields_share_a_key_or_a_nonce(suite: Suite) -> None:
    key = suite.key()
    sealed = [bytes.fromhex(suite.seal(key.public, b"secret", AAD)) for _ in range(8)]
    assert len({value[: suite.public_bytes] for value in sealed}) == 8
    assert len({value[suite.public_bytes :][:12] for value in sealed}) == 8


@SUITE
def test_any_bit_that_changed_closes_it(suite: Suite) -> None:
    key = suite.key()
    sealed = bytes.fromhex(suite.seal(key.public, b"secret", AAD))
    for position in range(0, len(sealed), 3):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(FieldNotOpened):
            suite.open(key, changed.hex(), AAD)


@SUITE
def test_every_end_that_is_missing_closes_it(suite: Suite) -> None:
    key = suite.key()
    sealed = suite.seal(key.public, b"", AAD)
    for length in range(len(sealed)):
        with pytest.raises(FieldNotOpened):
            suite.open(key, sealed[:length], AAD)


@SUITE
def test_other_keys_and_other_places_close_it(suite: Suite) -> None:
    key = suite.key()
    sealed = suite.seal(key.public, b"secret", AAD)
    for opener, associated in ((suite.key(), AAD), (key, b"elsewhere")):
        with pytest.raises(FieldNotOpened):
            suite.open(opener, sealed, associated)


@SUITE
def test_a_public_key_is_read_in_every_form(suite: Suite) -> None:
    public = suite.key().public
    for text in (public.hex(), "0x" + public.hex(), public.hex().upper(), public.removeprefix(suite.prefix).hex()):
        assert suite.read_public(text) == public


@SUITE
@pytest.mark.parametrize("text", ["", "zz", "0x", "a", "00" * 31, "00" * 66, "é" * 64, "ab cd"])
def test_what_is_no_key_is_refused(suite: Suite, text: str) -> None:
    with pytest.raises(E2eeKeyInvalid):
        suite.read_public(text)


@pytest.mark.parametrize("text", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f"])
def test_a_point_of_low_order_is_refused(text: str) -> None:
    with pytest.raises(E2eeKeyInvalid):
        SUITES[X25519_ALGO].read_public(text)


def test_a_point_off_the_curve_and_a_compressed_one_are_refused() -> None:
    compressed = b"\x02" + SUITES[SECP256K1_ALGO].key().public[1:33]
    for text in ("04" + "01" * 64, compressed.hex(), "05" + "01" * 64):
        with pytest.raises(E2eeKeyInvalid):
            SUITES[SECP256K1_ALGO].read_public(text)


def test_a_point_of_another_curve_is_refused() -> None:
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    with pytest.raises(E2eeKeyInvalid):
        SUITES[SECP256K1_ALGO].read_public(f"04{numbers.x:064x}{numbers.y:064x}")
