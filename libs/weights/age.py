"""Responsible for weights at rest: every file encrypted to one X25519 key, in the age format (age-encryption.org/v1).

Its chunks are authenticated one by one, so a file of any size is opened as a stream. Whoever knows the public key can
seal other files to it: what is opened counts only by its manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyrage
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from libs.errors import Code, MeshError
from libs.weights.manifest import Manifest
from libs.weights.measuring import WeightsMissing

SUFFIX = ".age"
_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


class WeightsNotOpened(MeshError):
    """A file does not open: it is damaged, or sealed to another key."""

    code = Code.PERMISSION_DENIED
    reason = "WEIGHTS_NOT_OPENED"


async def seal(source: Path, manifest: Manifest, folder: Path, key: X25519PublicKey) -> None:
    """Encrypt the manifest's files into a folder, each as its name and `.age`. Raises `WeightsMissing`."""
    recipient = pyrage.x25519.Recipient.from_str(recipient_of(key))

    def seal_one(name: str) -> None:
        sealed = folder / f"{name}{SUFFIX}"
        sealed.parent.mkdir(parents=True, exist_ok=True)
        plain = source / name if source.is_dir() else source
        pyrage.encrypt_file(str(plain), str(sealed), [recipient])

    try:
        await asyncio.to_thread(_each, manifest, seal_one)
    except (OSError, pyrage.EncryptError) as error:
        raise WeightsMissing(f"cannot seal the weights at {source}: {error}") from error


async def open_sealed(folder: Path, manifest: Manifest, target: Path, key: X25519PrivateKey) -> None:
    """Decrypt the manifest's files into a folder, over what may be there. What they hold is for the caller to measure.

    Once this ends, also by cancellation, nothing is written into the folder any more. Raises `WeightsMissing` or
    `WeightsNotOpened`.
    """
    identity = pyrage.x25519.Identity.from_str(identity_of(key))
    given_up = threading.Event()

    def open_one(name: str) -> None:
        if given_up.is_set():
            return
        sealed, opened = folder / f"{name}{SUFFIX}", target / name
        if not sealed.is_file():
            raise WeightsMissing(f"{sealed} is missing")
        opened.parent.mkdir(parents=True, exist_ok=True)
        try:
            pyrage.decrypt_file(str(sealed), str(opened), [identity])
        except (pyrage.DecryptError, OSError) as error:
            # A chunk that does not verify comes as an error of reading that the system never gave.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise WeightsNotOpened(f"{name}{SUFFIX} does not open: it is damaged, or sealed to another key") from error

    def open_all() -> None:
        target.mkdir(mode=0o700, exist_ok=True)
        _each(manifest, open_one)

    try:
        await to_its_end(open_all, given_up.set)
    except OSError as error:
        raise WeightsMissing(f"cannot open the weights in {folder}: {error}") from error


async def to_its_end(work: Callable[[], None], give_up: Callable[[], None] = lambda: None) -> None:
    """Run in a thread, and wait for it also when cancelled: a thread that nobody waits for writes on."""
    # No task: those that end a program cancel all of its tasks, and waiting for one would be over then.
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        give_up()
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):  # Once is enough to know it.
                await asyncio.wait([working])
        working.exception()  # The cancellation is what the caller hears of.
        raise


def identity_of(key: X25519PrivateKey) -> str:
    """Return the private key as age writes it."""
    return _bech32("age-secret-key-", key.private_bytes_raw()).upper()


def recipient_of(key: X25519PublicKey) -> str:
    """Return the public key as age writes it."""
    return _bech32("age", key.public_bytes_raw())


def _each(manifest: Manifest, work: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(os.cpu_count() or 1, "weights") as threads:
        tasks = [threads.submit(work, file.name) for file in manifest.files]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _bech32(prefix: str, data: bytes) -> str:
    """Encode as BIP 173 does, without its limit on length."""
    values = _in_fives(data)
    checked = [*(ord(each) >> 5 for each in prefix), 0, *(ord(each) & 31 for each in prefix), *values, *[0] * 6]
    check = 1
    for value in checked:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            check ^= generator if top >> bit & 1 else 0
    check ^= 1
    return f"{prefix}1" + "".join(
        _ALPHABET[each] for each in (*values, *(check >> 5 * (5 - at) & 31 for at in range(6)))
    )


def _in_fives(data: bytes) -> list[int]:
    bits = int.from_bytes(data, "big") << -8 * len(data) % 5
    count = -(-8 * len(data) // 5)
    return [bits >> 5 * (count - 1 - at) & 31 for at in range(count)]
