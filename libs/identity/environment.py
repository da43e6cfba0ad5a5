"""It is responsible for environment secrets in dstack's own form: sealed to a workload's X25519 key, and opened.

    sealed = ephemeral public key (32) || nonce (12) || AES-256-GCM(X25519 shared secret, {"env": [{"key", "value"}]})

The form is confidential and not authentic: it names no sender and no time. Whoever knows the public key, the host
first, can seal values of their own or bring back an older text. So no value that arrives this way may decide whom to
trust, nor which policy, root or address is the right one; that belongs into the measured app-compose. Nor does it say
whose the public key is: the mesh CA does (`libs.policy.custody`). dstack's own keys for environments are not used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs import jcs
from libs.errors import Code, MeshError

MAX_VARIABLES = 1024
MAX_NAME_BYTES = 255
MAX_VALUE_BYTES = 128 * 1024
MAX_TOTAL_BYTES = 1024 * 1024
"""Of names and values, in UTF-8."""

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
# JSON may write one byte as six (\u0000), and has some 30 bytes around each name and value.
_MAX_SEALED_BYTES = 6 * MAX_TOTAL_BYTES + 64 * MAX_VARIABLES


class EnvironmentKeyRefused(MeshError):
    """No secret can be shared with this public key."""

    code = Code.INVALID_ARGUMENT
    reason = "ENVIRONMENT_KEY_REFUSED"


class EnvironmentNotOpened(MeshError):
    """What arrived does not open: it is damaged, or was sealed to another key."""

    code = Code.PERMISSION_DENIED
    reason = "ENVIRONMENT_NOT_OPENED"


class EnvironmentMalformed(MeshError):
    """The variables are not of dstack's form."""

    code = Code.INVALID_ARGUMENT
    reason = "ENVIRONMENT_MALFORMED"


class EnvironmentTooLarge(MeshError):
    """More variables, or longer ones, than a dstack guest takes."""

    code = Code.INVALID_ARGUMENT
    reason = "ENVIRONMENT_TOO_LARGE"


class EnvironmentNameNotAllowed(MeshError):
    """A variable that the workload does not expect."""

    code = Code.PERMISSION_DENIED
    reason = "ENVIRONMENT_NAME_NOT_ALLOWED"


def seal_environment(variables: Mapping[str, str], public_key: bytes) -> bytes:
    """Seal to a workload's 32-byte X25519 public key, of which the caller MUST know whose it is.

    Raises `EnvironmentKeyRefused`, `EnvironmentMalformed`, `EnvironmentTooLarge`.
    """
    _verify_variables(variables)
    ephemeral = X25519PrivateKey.generate()
    nonce = os.urandom(_NONCE_BYTES)
    listed = [{"key": name, "value": value} for name, value in variables.items()]
    ciphertext = AESGCM(_shared(ephemeral, public_key)).encrypt(nonce, jcs.dumps({"env": listed}), None)
    return ephemeral.public_key().public_bytes_raw() + nonce + ciphertext


def open_environment(sealed: bytes, key: X25519PrivateKey, allowed: Collection[str]) -> dict[str, str]:
    """Return the variables. One that is not `allowed` refuses all of them; one that is allowed may be absent.

    Raises `EnvironmentNotOpened`, `EnvironmentKeyRefused`, `EnvironmentMalformed`, `EnvironmentTooLarge`,
    `EnvironmentNameNotAllowed`.
    """
    if len(sealed) > _MAX_SEALED_BYTES:
        raise EnvironmentTooLarge(f"a sealed environment has at most {_MAX_SEALED_BYTES} bytes")
    start = _KEY_BYTES + _NONCE_BYTES
    if len(sealed) < start + _TAG_BYTES:
        raise EnvironmentNotOpened("a sealed environment ends too early")
    cipher = AESGCM(_shared(key, sealed[:_KEY_BYTES]))
    try:
        plaintext = cipher.decrypt(sealed[_KEY_BYTES:start], sealed[start:], None)
    except InvalidTag as error:
        raise EnvironmentNotOpened("a sealed environment does not open with this workload's key") from error
    variables = _parse(plaintext)
    _verify_variables(variables)
    for name in variables:
        if name not in allowed:
            raise EnvironmentNameNotAllowed(f"the environment sets {name}, which this workload does not expect")
    return variables


def _shared(key: X25519PrivateKey, public_key: bytes) -> bytes:
    try:
        # Refuses an all-zero secret, which anybody could know: the points of small order lead to it.
        return key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise EnvironmentKeyRefused("no secret can be shared with this X25519 public key") from error


def _parse(plaintext: bytes) -> dict[str, str]:
    try:
        document = jcs.loads_object(plaintext)
    except jcs.JsonMalformed:
        # Its text quotes what it reads, and those are secrets: the chain ends here.
        raise EnvironmentMalformed("an environment is not strict JSON") from None
    listed = document.get("env")
    if document.keys() != {"env"} or not isinstance(listed, list):
        raise EnvironmentMalformed("an environment has the one member env, a list")
    variables = dict(_pair(item) for item in listed)
    if len(variables) != len(listed):
        raise EnvironmentMalformed("an environment sets a variable twice")
    return variables


def _pair(item: Any) -> tuple[str, str]:
    if not isinstance(item, dict) or item.keys() != {"key", "value"}:
        raise EnvironmentMalformed("a variable has the members key and value")
    if not isinstance(item["key"], str) or not isinstance(item["value"], str):
        raise EnvironmentMalformed("a variable's name and value are texts")
    return item["key"], item["value"]


def _verify_variables(variables: Mapping[str, str]) -> None:
    if len(variables) > MAX_VARIABLES:
        raise EnvironmentTooLarge(f"an environment has at most {MAX_VARIABLES} variables")
    total = 0
    for name, value in variables.items():
        if not _NAME.fullmatch(name):
            raise EnvironmentMalformed(f"a variable's name matches {_NAME.pattern}")
        if "\0" in value:
            raise EnvironmentMalformed(f"the value of {name[:MAX_NAME_BYTES]} has a NUL, which no environment can hold")
        size = _utf8_bytes(name, value)
        if len(name) > MAX_NAME_BYTES or size > MAX_VALUE_BYTES:
            raise EnvironmentTooLarge(
                f"a name has at most {MAX_NAME_BYTES} bytes, a value {MAX_VALUE_BYTES}: {name[:MAX_NAME_BYTES]}"
            )
        total += len(name) + size
    if total > MAX_TOTAL_BYTES:
        raise EnvironmentTooLarge(f"names and values have at most {MAX_TOTAL_BYTES} bytes together")


def _utf8_bytes(name: str, value: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        # Its text quotes the value.
        raise EnvironmentMalformed(f"the value of {name[:MAX_NAME_BYTES]} is not UTF-8") from None
