"""It is responsible for the root secret: random, born in the first start, at rest only under a dstack-derived key.

File `root.sealed`: 8 bytes `TMKROOT1`, 12 bytes nonce, AES-256-GCM of the 32 bytes with the first 8 as associated data.
The sealing key never leaves the CVM, and a guest agent of another app derives another one. It is as secret as the
dstack KMS that it came from, so where the measured app-compose pins that KMS's root, the key's chain must lead there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.errors import Code, MeshError
from libs.files import write_durably
from libs.tee.dstack import Guest
from libs.tee.dstack_custody import verify_chain
from services.kms.ca import CERTIFICATE_FILE

_MAGIC = b"TMKROOT1"
_SEAL_PATH = "teemesh/kms/root-seal/aes-256-gcm/v1"
_NONCE_BYTES = 12
_ROOT_BYTES = 32


class RootNotOpened(MeshError):
    """The sealed root exists and cannot be opened. It is never replaced: every key of the mesh hangs on it."""

    code = Code.DATA_LOSS
    reason = "ROOT_NOT_OPENED"


async def open_root(guest: Guest, state_dir: Path, dstack_kms_root: bytes | None) -> bytes:
    """Return the 32-byte root, making and sealing it on the first start.

    `dstack_kms_root` is the measured pin; without one, any guest agent's key is taken. Raises `RootNotOpened` and,
    before anything is sealed or opened, what `verify_chain` raises.
    """
    path = state_dir / "root.sealed"
    cipher = AESGCM(await _sealing_key(guest, dstack_kms_root))
    if not path.exists():
        if (state_dir / CERTIFICATE_FILE).exists():
            raise RootNotOpened(f"{path} is gone and the CA that came of it is not: restore the file, or reset both")
        root = os.urandom(_ROOT_BYTES)
        nonce = os.urandom(_NONCE_BYTES)
        write_durably(path, _MAGIC + nonce + cipher.encrypt(nonce, root, _MAGIC))
        return root
    sealed = path.read_bytes()
    magic, nonce, ciphertext = sealed[:8], sealed[8 : 8 + _NONCE_BYTES], sealed[8 + _NONCE_BYTES :]
    if magic != _MAGIC:
        raise RootNotOpened(f"{path} is not a sealed root of a known format")
    try:
        return cipher.decrypt(nonce, ciphertext, _MAGIC)
    except (InvalidTag, ValueError) as error:
        raise RootNotOpened(f"{path} is damaged, or was sealed by another CVM") from error


async def _sealing_key(guest: Guest, dstack_kms_root: bytes | None) -> bytes:
    key = await guest.key(_SEAL_PATH)
    if dstack_kms_root is not None:
        app_id = await guest.app_id()
        # Some 12 ms of pure Python.
        await asyncio.to_thread(verify_chain, key.claim, key.signature_chain, app_id=app_id, kms_root=dstack_kms_root)
    return HKDF(hashes.SHA256(), 32, salt=None, info=_SEAL_PATH.encode()).derive(key.secret)
