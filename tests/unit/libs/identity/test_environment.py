from __future__ import annotations

import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from dstack_sdk import EnvVar, encrypt_env_vars, encrypt_env_vars_sync
from hypothesis import given, settings
from hypothesis import strategies as st

from libs import jcs
from libs.errors import MeshError
from libs.identity.environment import (
    MAX_TOTAL_BYTES,
    MAX_VALUE_BYTES,
    MAX_VARIABLES,
    EnvironmentKeyRefused,
    EnvironmentMalformed,
    EnvironmentNameNotAllowed,
    EnvironmentNotOpened,
    EnvironmentTooLarge,
    open_environment,
    seal_environment,
)

KEY = X25519PrivateKey.generate()
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
VARIABLES = {"API_KEY": "s3cret", "_empty": "", "greeting": 'grüße "\n\\ 🔑'}

P = 2**255 - 19
SMALL_ORDER_POINTS = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


def sealed_text(plaintext: bytes) -> bytes:
    """What the host, or anybody, can make: any text sealed to the workload."""
    ephemeral = X25519PrivateKey.generate()
    nonce = os.urandom(12)
    secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(PUBLIC_KEY))
    return ephemeral.public_key().public_bytes_raw() + nonce + AESGCM(secret).encrypt(nonce, plaintext, None)


def sealed(*variables: Any) -> bytes:
    return sealed_text(jcs.dumps({"env": list(variables)}))


def variable(name: Any = "A", value: Any = "a") -> dict[str, Any]:
    return {"key": name, "value": value}


def test_the_workload_alone_opens_what_was_sealed_to_it() -> None:
    blob = seal_environment(VARIABLES, PUBLIC_KEY)
    assert b"s3cret" not in blob
    assert open_environment(blob, KEY, VARIABLES) == VARIABLES
    with pytest.raises(EnvironmentNotOpened) as refusal:
        open_environment(blob, X25519PrivateKey.generate(), VARIABLES)
    assert refusal.value.reason == "ENVIRONMENT_NOT_OPENED"


async def test_what_dstacks_sdk_encrypts_opens() -> None:
    listed = [EnvVar(name, value) for name, value in VARIABLES.items()]
    for blob in (
        await encrypt_env_vars(listed, PUBLIC_KEY.hex()),
        encrypt_env_vars_sync(listed, "0x" + PUBLIC_KEY.hex()),
    ):
        assert open_environment(bytes.fromhex(blob), KEY, VARIABLES) == VARIABLES


def test_what_is_sealed_has_dstacks_form() -> None:
    blob = seal_environment(VARIABLES, PUBLIC_KEY)
    # As a dstack guest opens it: the raw shared secret is the key, no associated data.
    secret = KEY.exchange(X25519PublicKey.from_public_bytes(blob[:32]))
    document = jcs.loads(AESGCM(secret).decrypt(blob[32:44], blob[44:], None))
    assert document == {"env": [{"key": name, "value": value} for name, value in VARIABLES.items()]}


def test_no_two_sealings_share_key_or_nonce() -> None:
    blobs = [seal_environment(VARIABLES, PUBLIC_KEY) for _ in range(20)]
    assert len({blob[:32] for blob in blobs}) == len({blob[32:44] for blob in blobs}) == 20


def test_a_damaged_environment_does_not_open() -> None:
    blob = seal_environment(VARIABLES, PUBLIC_KEY)
    damaged = [blob[:index] + bytes([blob[index] ^ 1]) + blob[index + 1 :] for index in (0, 32, 44, len(blob) - 1)]
    for bad in (b"", blob[:59], blob[:-1], blob + b"\0", *damaged):
        with pytest.raises(EnvironmentNotOpened):
            open_environment(bad, KEY, VARIABLES)


@pytest.mark.parametrize("point", SMALL_ORDER_POINTS)
def test_an_all_zero_shared_secret_is_refused(point: int) -> None:
    public_key = point.to_bytes(32, "little")
    with pytest.raises(EnvironmentKeyRefused) as refusal:
        seal_environment(VARIABLES, public_key)
    assert refusal.value.reason == "ENVIRONMENT_KEY_REFUSED"
    nonce = bytes(12)
    forged = public_key + nonce + AESGCM(bytes(32)).encrypt(nonce, jcs.dumps({"env": [variable()]}), None)
    with pytest.raises(EnvironmentKeyRefused):
        open_environment(forged, KEY, {"A"})


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_public_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(EnvironmentKeyRefused):
        seal_environment(VARIABLES, bytes([9]) * size)


def test_a_variable_that_is_not_allowed_refuses_all() -> None:
    blob = seal_environment({"A": "a", "LD_PRELOAD": "/tmp/x.so"}, PUBLIC_KEY)
    with pytest.raises(EnvironmentNameNotAllowed, match="LD_PRELOAD") as refusal:
        open_environment(blob, KEY, {"A"})
    assert refusal.value.reason == "ENVIRONMENT_NAME_NOT_ALLOWED"


def test_an_allowed_variable_may_be_absent() -> None:
    assert open_environment(seal_environment({"A": "a"}, PUBLIC_KEY), KEY, {"A", "B"}) == {"A": "a"}
    assert open_environment(seal_environment({}, PUBLIC_KEY), KEY, ()) == {}


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "A\n", "Ä", "A.B"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(EnvironmentMalformed) as refusal:
        seal_environment({name: "a"}, PUBLIC_KEY)
    assert refusal.value.reason == "ENVIRONMENT_MALFORMED"
    with pytest.raises(EnvironmentMalformed):
        open_environment(sealed(variable(name)), KEY, {name})


def test_a_variable_that_is_set_twice_is_refused() -> None:
    with pytest.raises(EnvironmentMalformed, match="twice"):
        open_environment(sealed(variable("A", "1"), variable("A", "2")), KEY, {"A"})


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"env":{}}',
        b'{"env":[],"env":[]}',
        b'{"env":[],"allowed":[]}',
        b'{"env":[1]}',
        b'{"env":[{"key":"A"}]}',
        b'{"env":[{"key":"A","value":1}]}',
        b'{"env":[{"key":null,"value":"a"}]}',
        b'{"env":[{"key":"A","value":"a","more":1}]}',
        rb'{"env":[{"key":"A","value":"\ud800"}]}',
        rb'{"env":[{"key":"A","value":"a\u0000b"}]}',
    ],
)
def test_a_text_of_another_form_is_refused(plaintext: bytes) -> None:
    with pytest.raises(EnvironmentMalformed):
        open_environment(sealed_text(plaintext), KEY, {"A"})


@pytest.mark.parametrize("value", ["s3cret\0", "s3cret\ud800"])
def test_a_value_that_no_environment_can_hold_is_refused_and_not_quoted(value: str) -> None:
    with pytest.raises(EnvironmentMalformed) as refusal:
        seal_environment({"A": value}, PUBLIC_KEY)
    assert "s3cret" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_a_text_that_is_no_json_is_not_quoted() -> None:
    with pytest.raises(EnvironmentMalformed) as refusal:
        open_environment(sealed_text(b'{"s3cret'), KEY, ())
    assert "s3cret" not in str(refusal.value)
    assert refusal.value.__cause__ is None


FULL = {f"V{index}": "" for index in range(MAX_VARIABLES)}
LONGEST = "x" * MAX_VALUE_BYTES
WHOLE = {**{f"V{index}": LONGEST for index in range(7)}, "LAST": "x" * (MAX_VALUE_BYTES - 7 * 2 - 4)}
"""Names and values of exactly the bytes that fit."""


@pytest.mark.parametrize("variables", [FULL, {"A": LONGEST}, {"A" * 255: ""}, WHOLE, {"A": "\x01" * MAX_VALUE_BYTES}])
def test_the_largest_environments_pass(variables: dict[str, str]) -> None:
    assert open_environment(seal_environment(variables, PUBLIC_KEY), KEY, variables) == variables


async def test_the_largest_environment_opens_as_the_sdk_escapes_it() -> None:
    # The SDK writes every control character and every letter beyond ASCII as six bytes or more.
    variables = {f"V{index}": "\x01" * (MAX_VALUE_BYTES - 2) for index in range(8)}
    blob = await encrypt_env_vars([EnvVar(name, value) for name, value in variables.items()], PUBLIC_KEY.hex())
    assert open_environment(bytes.fromhex(blob), KEY, variables) == variables


@pytest.mark.parametrize(
    "variables",
    [
        {**FULL, "ONE_MORE": ""},
        {"A": LONGEST + "x"},
        {"A": "ü" * (MAX_VALUE_BYTES // 2) + "x"},
        {"A" * 256: ""},
        {**WHOLE, "LAST": WHOLE["LAST"] + "x"},
    ],
)
def test_a_larger_environment_is_refused(variables: dict[str, str]) -> None:
    with pytest.raises(EnvironmentTooLarge) as refusal:
        seal_environment(variables, PUBLIC_KEY)
    assert refusal.value.reason == "ENVIRONMENT_TOO_LARGE"
    blob = sealed(*(variable(name, value) for name, value in variables.items()))
    with pytest.raises(EnvironmentTooLarge):
        open_environment(blob, KEY, variables)


def test_what_is_too_large_is_not_even_decrypted() -> None:
    with pytest.raises(EnvironmentTooLarge):
        open_environment(bytes(7 * MAX_TOTAL_BYTES), KEY, ())


@settings(max_examples=200)
@given(plaintext=st.binary(max_size=200))
def test_hostile_texts_raise_only_refusals(plaintext: bytes) -> None:
    with pytest.raises(MeshError):
        open_environment(sealed_text(plaintext), KEY, ())
