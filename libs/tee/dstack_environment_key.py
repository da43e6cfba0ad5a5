"""Responsible for whose the key is to which environment secrets are sealed: a dstack KMS's signature over it.

A dstack KMS hands out an application's X25519 public key to anybody and signs it with its root. The signature with a
time is the one to ask for. The older one, without, is as good as for ever: what it proves is that this was the key of
the application at some time.
"""

from __future__ import annotations

import struct

from libs.errors import Code, MeshError
from libs.tee.dstack_custody import APP_ID_BYTES
from libs.tee.keccak import keccak256
from libs.tee.secp256k1 import recover_signer

MAX_AGE_SECONDS = 300
MAX_AHEAD_SECONDS = 60
_TAG = b"dstack-env-encrypt-pubkey:"
_PUBLIC_KEY_BYTES = 32
_MAX_TIME = 2**64 - 1


class EnvironmentKeyNotProven(MeshError):
    """The pinned root did not sign this key for this application, or not at this time."""

    code = Code.PERMISSION_DENIED
    reason = "ENVIRONMENT_KEY_NOT_PROVEN"


class EnvironmentKeyNotCurrent(MeshError):
    """The signature is genuine, and too old or of the future."""

    code = Code.PERMISSION_DENIED
    reason = "ENVIRONMENT_KEY_NOT_CURRENT"


def verify_environment_key(
    public_key: bytes,
    signature_v1: bytes,
    signed_at: int,
    *,
    app_id: bytes,
    kms_root: bytes,
    now: int,
    max_age_seconds: int = MAX_AGE_SECONDS,
) -> None:
    """Prove that the pinned root gave this application this key lately. Times are in Unix seconds.

    Raises `EnvironmentKeyNotProven`, `EnvironmentKeyNotCurrent` and what `recover_signer` raises.
    """
    if not 0 <= signed_at <= _MAX_TIME:
        raise EnvironmentKeyNotProven("the time of signing does not fit in eight bytes")
    _verify(public_key, signature_v1, app_id, struct.pack(">Q", signed_at), kms_root)
    if not -MAX_AHEAD_SECONDS <= now - signed_at <= max_age_seconds:
        raise EnvironmentKeyNotCurrent(f"the key was signed {now - signed_at} s ago: ask the dstack KMS again")


def verify_environment_key_undated(public_key: bytes, signature: bytes, *, app_id: bytes, kms_root: bytes) -> None:
    """Prove that the pinned root gave this application this key at some time.

    Raises `EnvironmentKeyNotProven` and what `recover_signer` raises.
    """
    _verify(public_key, signature, app_id, b"", kms_root)


def _verify(public_key: bytes, signature: bytes, app_id: bytes, time: bytes, kms_root: bytes) -> None:
    # The message has no lengths in it: only with these is it unambiguous.
    if len(app_id) != APP_ID_BYTES or len(public_key) != _PUBLIC_KEY_BYTES:
        raise EnvironmentKeyNotProven(
            f"an application id has {APP_ID_BYTES} bytes and an environment key {_PUBLIC_KEY_BYTES}"
        )
    found = recover_signer(keccak256(_TAG + app_id + time + public_key), signature)
    if found != kms_root:
        raise EnvironmentKeyNotProven(
            f"the pinned dstack KMS root {kms_root.hex()} did not sign this key for app {app_id.hex()}"
        )
