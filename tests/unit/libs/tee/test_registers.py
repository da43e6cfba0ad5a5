from __future__ import annotations

import hashlib
from typing import Any

import pytest

from libs.tee import registers
from libs.tee.registers import KeyProvider

COMPOSE_HASH = bytes(range(32))
APP_ID = bytes(range(20))
MRTD = b"m" * 48
RTMRS = (b"0" * 48, b"1" * 48, b"2" * 48, b"3" * 48)
ZERO = bytes(48)
# Of a KMS's root CA, as SubjectPublicKeyInfo.
KMS_KEY = (
    "3059301306072a8648ce3d020106082a8648ce3d030107034200048844eb42ccdf8c52fd4f174f362fcb9bbd19c45fd48f1edec2d8f1ca2353"
    "6ec1a74021b4cee610c074f8294d431b2b7fee2c39e5333fdaf0a4522d43fb159d9f"
)


def test_key_provider_is_the_digest_of_its_payload_or_zeros() -> None:
    assert registers.mr_key_provider(b"{}") == hashlib.sha256(b"{}").digest()
    assert registers.mr_key_provider(b"") == bytes(32)


def test_system_is_firmware_shape_kernel_and_key_provider() -> None:
    expected = hashlib.sha256(MRTD + RTMRS[0] + RTMRS[1] + RTMRS[2] + bytes(32)).digest()
    assert registers.mr_system(MRTD, RTMRS, bytes(32)) == expected
    assert registers.mr_system(MRTD, (*RTMRS[:3], ZERO), bytes(32)) == expected
    assert registers.mr_system(MRTD, RTMRS, b"k" * 32) != expected


def test_aggregate_is_all_registers_and_what_is_configured() -> None:
    plain = hashlib.sha256(MRTD + b"".join(RTMRS)).digest()
    assert registers.mr_aggregated(MRTD, RTMRS, ZERO, ZERO, ZERO) == plain
    for configured in ((b"c" * 48, ZERO, ZERO), (ZERO, b"o" * 48, ZERO), (ZERO, ZERO, b"f" * 48)):
        expected = hashlib.sha256(MRTD + b"".join(RTMRS) + b"".join(configured)).digest()
        assert registers.mr_aggregated(MRTD, RTMRS, *configured) == expected


def test_first_config_id_is_the_published_one() -> None:
    assert registers.mr_config_id_1(COMPOSE_HASH).hex() == "01" + COMPOSE_HASH.hex() + "00" * 15


@pytest.mark.parametrize(
    ("compose_hash", "app_id", "provider", "provider_id", "digest"),
    [
        (
            COMPOSE_HASH.hex(),
            APP_ID.hex(),
            KeyProvider.KMS,
            "aabbccdd",
            "e472ed80a08042f044ba63b53b798e98e3ea5219cd078007b1ac8b3dfc762b94",
        ),
        (
            COMPOSE_HASH.hex(),
            APP_ID.hex(),
            KeyProvider.NONE,
            "",
            "b21a3a65891c2c3955d82000b30fab13f4adc1a12dc4a84793ea322b71f1882a",
        ),
        (
            "4f475ed201ac079f2e4760fb7554763edcc97c48132d554666a2ec3fd2c9e099",
            "8d8f406cf93e1cf54207fbf99c9bc437dd4d6aef",
            KeyProvider.KMS,
            KMS_KEY,
            "dd0db3893b8c47b5e4098d7630d22959a1423af536890d10aaf3f0a7b169921b",
        ),
    ],
)
def test_second_config_id_is_the_published_one(
    compose_hash: str, app_id: str, provider: KeyProvider, provider_id: str, digest: str
) -> None:
    found = registers.mr_config_id_2(
        bytes.fromhex(compose_hash), bytes.fromhex(app_id), provider, bytes.fromhex(provider_id)
    )
    assert found.hex() == "02" + digest + "00" * 15


def test_key_providers_are_told_apart() -> None:
    found = {registers.mr_config_id_2(COMPOSE_HASH, APP_ID, provider, b"") for provider in KeyProvider}
    assert len(found) == 4


def test_third_config_id_is_over_the_documents_very_bytes() -> None:
    for document in ('{"version":3}', '{ "version": 3 }'):
        digest = hashlib.sha256(b"dstack-mr-config-v3:\0" + document.encode()).digest()
        assert registers.mr_config_id_3(document) == b"\x03" + digest + bytes(15)


@pytest.mark.parametrize(
    ("formula", "arguments"),
    [
        (registers.mr_system, (MRTD[:47], RTMRS, bytes(32))),
        (registers.mr_system, (MRTD, RTMRS[:3], bytes(32))),
        (registers.mr_system, (MRTD, (*RTMRS[:2], b"", RTMRS[3]), bytes(32))),
        (registers.mr_system, (MRTD, RTMRS, b"{}")),
        (registers.mr_aggregated, (MRTD, RTMRS, ZERO, ZERO, b"")),
        (registers.mr_aggregated, (MRTD, (*RTMRS, ZERO), ZERO, ZERO, ZERO)),
        (registers.mr_config_id_1, (COMPOSE_HASH[:20],)),
        (registers.mr_config_id_2, (COMPOSE_HASH + b"\0", APP_ID, KeyProvider.KMS, b"")),
        (registers.mr_config_id_2, (COMPOSE_HASH, APP_ID[:19], KeyProvider.KMS, b"")),
    ],
)
def test_values_of_other_sizes_are_a_bug(formula: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"bytes are required|values to unpack"):
        formula(*arguments)
