"""It is responsible for the root secret: random, born in the first start, at rest only under a dstack-derived key.

It lies in `root.sealed`. The sealing key never leaves the CVM, and a guest agent of another app derives another one. It
is as secret as the dstack KMS that it came from, so where the measured app-compose pins that KMS's root, the key's
chain must lead there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.errors import Code, MeshError
from libs.tee.dstack import Guest
from libs.tee.dstack_custody import verify_chain
from services.kms.ca import CERTIFICATE_FILE
from services.kms.sealed_file import SealDamaged, SealedFile

ROOT_FILE = "root.sealed"
_MAGIC = b"TMKROOT1"
_SEAL_PATH = "teemesh/kms/root-seal/aes-256-gcm/v1"
ROOT_BYTES = 32


class RootNotOpened(MeshError):
    """The sealed root exists and cannot be opened. It is never replaced: every key of the mesh hangs on it."""

    code = Code.DATA_LOSS
    reason = "ROOT_NOT_OPENED"


@dataclass(frozen=True, slots=True)
class Root:
    """The 32 bytes that everything derives from."""

    secret: bytes = field(repr=False)


async def make_root() -> Root:
    """The root of a new mesh."""
    return Root(os.urandom(ROOT_BYTES))


async def open_root(
    guest: Guest, state_dir: Path, dstack_kms_root: bytes | None, obtain: Callable[[], Awaitable[Root]] = make_root
) -> Root:
    """Return the root; on the first start, obtain and seal it.

    `dstack_kms_root` is the measured pin; without one, any guest agent's key is taken. Raises `RootNotOpened`, what
    `obtain` raises and, before anything is sealed or opened, what `verify_chain` raises.
    """
    path = state_dir / ROOT_FILE
    file = SealedFile(path, _MAGIC, await _sealing_key(guest, dstack_kms_root))
    try:
        sealed = file.read()
    except SealDamaged as error:
        raise RootNotOpened(str(error)) from error
    if sealed is not None:
        return Root(sealed)
    if (state_dir / CERTIFICATE_FILE).exists():
        raise RootNotOpened(f"{path} is gone and the CA that came of it is not: restore the file, or reset both")
    root = await obtain()
    file.write(root.secret)
    return root


async def _sealing_key(guest: Guest, dstack_kms_root: bytes | None) -> bytes:
    key = await guest.key(_SEAL_PATH)
    if dstack_kms_root is not None:
        app_id = await guest.app_id()
        # Some 12 ms of pure Python.
        await asyncio.to_thread(verify_chain, key.claim, key.signature_chain, app_id=app_id, kms_root=dstack_kms_root)
    return HKDF(hashes.SHA256(), 32, salt=None, info=_SEAL_PATH.encode()).derive(key.secret)
