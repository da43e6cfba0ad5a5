"""Responsible for the digests that dstack derives from a TD's registers: pure formulas, nothing is verified here.

They are worth what the registers are worth: take those from a verified quote. `mr_system` is the one to list for a
fleet; `mr_aggregated` contains the instance id and differs from instance to instance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum

from libs.tee.keccak import keccak256

_REGISTER_BYTES = 48
_DIGEST_BYTES = 32
_APP_ID_BYTES = 20
_DOCUMENT_TAG = b"dstack-mr-config-v3:\0"


class KeyProvider(IntEnum):
    """Who gives a TD its keys, as the second form of the configuration id counts them."""

    NONE = 0
    LOCAL = 1
    KMS = 2
    TPM = 3


def mr_key_provider(payload: bytes) -> bytes:
    """Return the digest of the `key-provider` event's payload; zeros for a TD without one."""
    return hashlib.sha256(payload).digest() if payload else bytes(_DIGEST_BYTES)


def mr_system(mrtd: bytes, rtmrs: Sequence[bytes], key_provider: bytes) -> bytes:
    """Return the digest of firmware, machine shape, kernel and key provider: registers MRTD and RTMR0 to RTMR2.

    `rtmrs` are all four; the last, which holds the application, does not count. `key_provider` is from
    `mr_key_provider`.
    """
    _require(_REGISTER_BYTES, mrtd, *rtmrs)
    _require(_DIGEST_BYTES, key_provider)
    rtmr0, rtmr1, rtmr2, _ = rtmrs
    return hashlib.sha256(mrtd + rtmr0 + rtmr1 + rtmr2 + key_provider).digest()


def mr_aggregated(
    mrtd: bytes, rtmrs: Sequence[bytes], mr_config_id: bytes, mr_owner: bytes, mr_owner_config: bytes
) -> bytes:
    """Return the digest of all five registers and, when any of them is not zero, of what the host configured.

    For the form of boot time, pass as the last register what it was at `boot-mr-done`.
    """
    configured = (mr_config_id, mr_owner, mr_owner_config)
    _require(_REGISTER_BYTES, mrtd, *rtmrs, *configured)
    rtmr0, rtmr1, rtmr2, rtmr3 = rtmrs
    registers = (mrtd, rtmr0, rtmr1, rtmr2, rtmr3)
    return hashlib.sha256(b"".join(registers + configured if any(map(any, configured)) else registers)).digest()


def mr_config_id_1(compose_hash: bytes) -> bytes:
    """Return the configuration id that names the app-compose alone."""
    _require(_DIGEST_BYTES, compose_hash)
    return _config_id(1, compose_hash)


def mr_config_id_2(compose_hash: bytes, app_id: bytes, provider: KeyProvider, provider_id: bytes) -> bytes:
    """Return the configuration id that names app-compose, application and key provider.

    For a KMS, `provider_id` is the SubjectPublicKeyInfo (DER) of its root CA; it may be empty.
    """
    _require(_DIGEST_BYTES, compose_hash)
    _require(_APP_ID_BYTES, app_id)
    return _config_id(2, keccak256(compose_hash + app_id + bytes([provider]) + provider_id))


def mr_config_id_3(document: str) -> bytes:
    """Return the configuration id that names a whole configuration document: its very bytes, canonical or not."""
    return _config_id(3, hashlib.sha256(_DOCUMENT_TAG + document.encode()).digest())


def _config_id(form: int, digest: bytes) -> bytes:
    return (bytes([form]) + digest).ljust(_REGISTER_BYTES, b"\0")


def _require(size: int, *values: bytes) -> None:
    """A value of another size would move the boundaries inside the hashed bytes."""
    for value in values:
        if len(value) != size:
            raise ValueError(f"{size} bytes are required, not {len(value)}")
