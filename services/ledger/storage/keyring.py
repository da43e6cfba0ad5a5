"""It is responsible for the file of vault shares: the halves of tenants' keys that nothing can derive again.

Losing the file loses entries; keeping an old copy keeps what was to be forgotten. It is encrypted under the KMS key
`ledger-keyring` and replaced whole, durably, by every change.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs import jcs
from libs.events.vault import KEY_SIZE, VAULT_ID_SIZE
from libs.files import write_durably
from services.ledger.storage.damage import LogBroken, LogDamaged

NAME = "keyring"
KEY_NAME = "ledger-keyring"
_MAGIC = b"TMKR"
_HEAD = struct.Struct(">4sI12s")
_TAG_SIZE = 16
_OPEN = "open"


@dataclass(frozen=True, slots=True)
class VaultShares:
    """One tenant's vault: what the ledger holds of its keys."""

    vault_id: bytes
    tenant: str
    tag_share: bytes = field(repr=False)
    epochs: Mapping[int, bytes] = field(repr=False)
    """The share of each monthly epoch."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """All vaults. Each stored generation is one above the one before."""

    generation: int
    vaults: tuple[VaultShares, ...]


class KeyringFile:
    """The file and the key that it is under."""

    def __init__(self, directory: Path, log_id: bytes) -> None:
        self._path = directory / NAME
        self._log_id = log_id

    def key_epoch(self) -> int | None:
        """Return which epoch of the key opens the stored file, or None where there is no file yet.

        Raises `LogDamaged` for what no key opens: another form, no whole head and tag, or no epoch.
        """
        data = self._read()
        return None if data is None else self._head(data)[0]

    def load(self, key: bytes) -> Keyring:
        """Open the file; without one the keyring is empty. Raises `LogDamaged`."""
        data = self._read()
        if data is None:
            return Keyring(0, ())
        epoch, nonce = self._head(data)
        try:
            plain = AESGCM(key).decrypt(nonce, data[_HEAD.size :], self._associated(epoch))
        except InvalidTag as error:
            raise LogDamaged(NAME, _HEAD.size, "it does not open with this log's key") from error
        try:
            return _parse(jcs.loads_object(plain))
        except (jcs.JsonMalformed, ValueError, KeyError, TypeError) as error:
            raise LogDamaged(NAME, _HEAD.size, f"it holds no keyring: {error}") from error

    def store(self, keyring: Keyring, key: bytes, key_epoch: int) -> None:
        """Replace the file. It IS durable when this returns. Raises `LogBroken`."""
        nonce = os.urandom(12)
        sealed = AESGCM(key).encrypt(nonce, jcs.dumps(_members(keyring)), self._associated(key_epoch))
        try:
            write_durably(self._path, _HEAD.pack(_MAGIC, key_epoch, nonce) + sealed)
        except OSError as error:
            raise LogBroken(f"the keyring could not be written: {error.strerror}") from error

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _head(self, data: bytes) -> tuple[int, bytes]:
        if len(data) < _HEAD.size + _TAG_SIZE or data[:4] != _MAGIC:
            raise LogDamaged(NAME, 0, "it is no keyring of version 1")
        _, epoch, nonce = _HEAD.unpack_from(data)
        if epoch == 0:
            raise LogDamaged(NAME, len(_MAGIC), "a key's epochs begin with 1")
        return epoch, nonce

    def _associated(self, key_epoch: int) -> bytes:
        # A keyring of another log, or under a relabelled key, must not open.
        return _MAGIC + key_epoch.to_bytes(4, "big") + self._log_id


def _members(keyring: Keyring) -> dict[str, Any]:
    return {
        "generation": keyring.generation,
        "vaults": [
            {
                "vault_id": vault.vault_id.hex(),
                "tenant": vault.tenant,
                "tag_share": vault.tag_share.hex(),
                "epochs": [[epoch, share.hex()] for epoch, share in sorted(vault.epochs.items())],
                "state": _OPEN,
            }
            for vault in keyring.vaults
        ],
    }


def _parse(members: Mapping[str, Any]) -> Keyring:
    if members.keys() != {"generation", "vaults"} or type(members["generation"]) is not int:
        raise ValueError("a keyring has a generation and vaults")
    vaults = tuple(_parse_vault(value) for value in members["vaults"])
    _require_distinct(vault.vault_id for vault in vaults)
    _require_distinct(vault.tenant for vault in vaults)
    return Keyring(members["generation"], vaults)


def _parse_vault(value: Mapping[str, Any]) -> VaultShares:
    if value.keys() != {"vault_id", "tenant", "tag_share", "epochs", "state"} or value["state"] != _OPEN:
        raise ValueError("a vault has other members, or a state that this version does not know")
    _require_distinct(epoch for epoch, _ in value["epochs"])
    return VaultShares(
        vault_id=_octets(value["vault_id"], VAULT_ID_SIZE),
        tenant=value["tenant"],
        tag_share=_octets(value["tag_share"], KEY_SIZE),
        epochs={int(epoch): _octets(share, KEY_SIZE) for epoch, share in value["epochs"]},
    )


def _octets(text: str, size: int) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != size:
        raise ValueError(f"{size} bytes are required")
    return value


def _require_distinct(values: Iterable[object]) -> None:
    listed = list(values)
    if len(set(listed)) != len(listed):
        raise ValueError("something is listed twice")
