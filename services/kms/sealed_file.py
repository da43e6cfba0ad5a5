"""It is responsible for one file that only this KMS can read or change: a format number, a nonce, AES-256-GCM.

8 bytes of magic with the format's version, 12 bytes nonce, the ciphertext with the magic as associated data. An older
copy of the same file opens too: who keeps state in one must notice that it went back by other means.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs.files import write_durably

_MAGIC_BYTES = 8
_NONCE_BYTES = 12


class SealDamaged(Exception):
    """The file is not what this KMS sealed; the text says in which way."""


class SealedFile:
    """A file and its 32-byte key."""

    def __init__(self, path: Path, magic: bytes, key: bytes) -> None:
        if len(magic) != _MAGIC_BYTES:
            raise ValueError(f"the magic has {_MAGIC_BYTES} bytes")
        self.path = path
        self._magic = magic
        self._cipher = AESGCM(key)

    def read(self) -> bytes | None:
        """Return what was sealed, None where there is no file. Raises `SealDamaged`."""
        try:
            sealed = self.path.read_bytes()
        except FileNotFoundError:
            return None
        start = _MAGIC_BYTES + _NONCE_BYTES
        if sealed[:_MAGIC_BYTES] != self._magic:
            raise SealDamaged(f"{self.path} is not of a known format")
        try:
            return self._cipher.decrypt(sealed[_MAGIC_BYTES:start], sealed[start:], self._magic)
        except (InvalidTag, ValueError) as error:
            raise SealDamaged(f"{self.path} is damaged, or was sealed under another key") from error

    def write(self, content: bytes) -> None:
        """Replace the content durably, whole or not at all."""
        nonce = os.urandom(_NONCE_BYTES)
        write_durably(self.path, self._magic + nonce + self._cipher.encrypt(nonce, content, self._magic))
