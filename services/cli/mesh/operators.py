"""It is responsible for the key files of people: operators' and the tenant administrator's Ed25519 keys.

A key file is unencrypted PKCS#8 PEM that its owner alone may read; one that others may read is refused, as ssh does.
Production operators may keep keys elsewhere: everything but signing needs public keys only.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.errors import MeshError
from libs.files import fsync_dir
from services.cli.terminal.inputs import InputUnreadable, OutputExists, OutputUnwritable, read_input

TENANT_ADMIN = "tenant-admin.pem"
"""File name of the tenant administrator's key among the operators' keys."""

_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}")


class KeyFileExposed(MeshError):
    """Others than the owner may read the key file."""

    reason = "KEY_FILE_EXPOSED"


def make_key(path: Path) -> Ed25519PrivateKey:
    """Write a new key, readable by its owner alone. Raises `OutputExists` (a key is never overwritten) and
    `OutputUnwritable`.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise OutputExists(f"{path} exists: a key is never overwritten") from error
    except OSError as error:
        raise OutputUnwritable(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    fsync_dir(path.parent)
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a key file. Raises `InputUnreadable`, `KeyFileExposed`."""
    pem = read_input(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeyFileExposed(f"others may read {path}: chmod 600 it, and consider the key known")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputUnreadable(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputUnreadable(f"{path} is not an Ed25519 key")
    return key


def ensure_key(path: Path) -> Ed25519PrivateKey:
    """Read a key file, or make it when there is none."""
    return load_key(path) if path.exists() else make_key(path)


def ensure_operators(folder: Path, count: int) -> tuple[Ed25519PrivateKey, ...]:
    """Return the keys of `count` operators, kept in `folder` as operator-1.pem and so on."""
    return tuple(ensure_key(folder / f"operator-{number}.pem") for number in range(1, count + 1))


def ensure_tenant_admin(folder: Path) -> Ed25519PrivateKey:
    """Return the tenant administrator's key, kept in `folder`."""
    return ensure_key(folder / TENANT_ADMIN)


def public_key(key: Ed25519PrivateKey) -> bytes:
    """Return the 32 bytes by which policy names a key."""
    return key.public_key().public_bytes_raw()


def read_public_key(given: str) -> bytes:
    """Return the key that a command line names: 64 hexadecimal digits, or a PEM file, public or private. Raises
    `InputUnreadable`, `KeyFileExposed`.
    """
    if _PUBLIC_KEY.fullmatch(given):
        return bytes.fromhex(given)
    path = Path(given)
    pem = read_input(path)
    if b"PRIVATE KEY" in pem:
        return public_key(load_key(path))
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputUnreadable(f"{given} is neither a PEM key nor 64 hexadecimal digits") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputUnreadable(f"{given} is not an Ed25519 key")
    return key.public_bytes_raw()


def read_public_keys(given: Sequence[str]) -> tuple[bytes, ...]:
    """Return the distinct keys that a command line names. Raises `InputUnreadable`."""
    keys = tuple(read_public_key(text) for text in given)
    if len(set(keys)) != len(keys):
        raise InputUnreadable("the same operator key is given twice")
    return keys


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh operator-key`."""
    parser = subparsers.add_parser("operator-key", help="make or name an operator's signing key")
    parser.add_argument("path", type=Path, help="the key file, PEM")
    parser.add_argument("--new", action="store_true", help="make the key; the file must not exist")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    path: Path = args.path
    key = make_key(path) if args.new else load_key(path)
    print(public_key(key).hex())
    return 0
