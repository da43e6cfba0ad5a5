"""A configuration id that contradicts the measured application, or cannot be understood, is refused."""

from __future__ import annotations

import json

import pytest

from libs.errors import MeshError
from libs.tee import registers
from libs.tee.config_id import verify_config_id
from libs.tee.eventlog import Identity
from libs.tee.registers import KeyProvider

COMPOSE, APP = bytes(range(32)), bytes(range(20))
PROVIDER_ID = b"\x30\x59"


def identity(provider: bytes | None = None) -> Identity:
    payload = provider or json.dumps({"name": "kms", "id": PROVIDER_ID.hex()}).encode()
    return Identity(APP, COMPOSE, bytes(20), payload, bytes(32))


def refusal(config_id: bytes, of: Identity) -> str:
    with pytest.raises(MeshError) as refused:
        verify_config_id(config_id, of)
    return refused.value.reason


BY_COMPOSE = registers.mr_config_id_1(COMPOSE)
BY_APPLICATION = registers.mr_config_id_2(COMPOSE, APP, KeyProvider.KMS, PROVIDER_ID)


@pytest.mark.parametrize("config_id", [bytes(48), BY_COMPOSE, BY_APPLICATION])
def test_an_id_that_states_the_measured_application_is_accepted(config_id: bytes) -> None:
    verify_config_id(config_id, identity())


@pytest.mark.parametrize(
    "config_id",
    [
        registers.mr_config_id_1(bytes(32)),
        BY_COMPOSE[:-1] + b"\x01",
        registers.mr_config_id_2(bytes(32), APP, KeyProvider.KMS, PROVIDER_ID),
        registers.mr_config_id_2(COMPOSE, bytes(20), KeyProvider.KMS, PROVIDER_ID),
        registers.mr_config_id_2(COMPOSE, APP, KeyProvider.TPM, PROVIDER_ID),
        registers.mr_config_id_2(COMPOSE, APP, KeyProvider.KMS, b""),
    ],
)
def test_an_id_of_another_application_is_refused(config_id: bytes) -> None:
    assert refusal(config_id, identity()) == "CONFIG_ID_MISMATCH"


@pytest.mark.parametrize("config_id", [registers.mr_config_id_3("{}"), b"\x04" + bytes(47), bytes(47) + b"\x01"])
def test_an_id_that_cannot_be_recomputed_is_refused(config_id: bytes) -> None:
    assert refusal(config_id, identity()) == "CONFIG_ID_NOT_UNDERSTOOD"


@pytest.mark.parametrize(
    "provider",
    [b"{}", b"no json", b'{"name":"other","id":""}', b'{"name":"kms","id":"zz"}', b'{"name":"kms","id":1}', b"[]"],
)
def test_a_provider_that_is_not_known_makes_the_id_unknown(provider: bytes) -> None:
    assert refusal(BY_APPLICATION, identity(provider)) == "CONFIG_ID_NOT_UNDERSTOOD"
