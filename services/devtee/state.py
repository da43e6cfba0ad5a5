"""Responsible for what must survive a restart: the machine's keys and each instance's identity.

One file holds the whole machine and one each instance, and each is replaced as a whole, so `kill -9` at any moment
leaves either no file, and the next start makes a new one, or a complete one. Anything else is refused, never patched:
a machine that silently changed its keys would look like another machine to everyone who knows it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.errors import Code, MeshError
from libs.files import remove_drafts, write_durably
from services.devtee.gpus import Gpus
from services.devtee.keys import MockKms
from services.devtee.machine import InstanceIdentity, Machine
from services.devtee.pki import Signer, VendorPki
from services.devtee.platform import Platform

_VERSION = 1
_GPUS = "gpus.json"
_WHOLE = re.compile(r"(machine|gpus)\.json")
_INSTANCE = re.compile(r"[a-z0-9-]+\.json")
_INSTANCE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class StateInUse(MeshError):
    """Another process holds the state directory."""

    code = Code.FAILED_PRECONDITION
    reason = "STATE_IN_USE"


class StateCorrupt(MeshError):
    """A state file is not what this service wrote."""

    code = Code.DATA_LOSS
    reason = "STATE_CORRUPT"


class InstanceNameInvalid(MeshError):
    """An instance's name cannot be a file name."""

    code = Code.INVALID_ARGUMENT
    reason = "INSTANCE_NAME_INVALID"


class StateDirectory:
    """A state directory that this process holds."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def machine(self, now: int) -> Machine:
        """The directory's machine, made on first use. Raises `StateCorrupt`."""
        path = self.root / "machine.json"
        if not path.exists():
            if (self.root / "instances").exists():
                raise StateCorrupt(f"{path} is gone but its instances are not; restore it, or remove the directory")
            machine = Machine.create(now)
            _write_gpus(self.root, machine.gpus)
            _write(path, _machine_document(machine))
            return machine
        with _reading(path) as document:
            return _parse_machine(document, self._gpus(now))

    def _gpus(self, now: int) -> Gpus:
        """The GPUs of a machine that exists; one from before there were any, or parts of them, gets what it lacks."""
        path = self.root / _GPUS
        if not path.exists():
            gpus = Gpus.create(now)
            _write_gpus(self.root, gpus)
            return gpus
        with _reading(path) as document:
            stored = jcs.dumps(document["gpus"])
            gpus = Gpus.decode(stored, now)
        if gpus.encode() != stored:
            _write_gpus(self.root, gpus)
        return gpus

    def identity(self, instance: str) -> InstanceIdentity:
        """The instance's identity, made on first use. Raises `StateCorrupt`, `InstanceNameInvalid`."""
        if not _INSTANCE_NAME.fullmatch(instance):
            raise InstanceNameInvalid("an instance's name is lower-case letters, digits and hyphens, at most 63")
        folder = self.root / "instances"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{instance}.json"
        if not path.exists():
            identity = InstanceIdentity.random()
            _write(path, {"app_id": identity.app_id.hex(), "seed": identity.seed.hex()})
            return identity
        with _reading(path) as document:
            return InstanceIdentity(_sized(document["app_id"], 20), _sized(document["seed"], 32))


@contextmanager
def holding(root: Path) -> Iterator[StateDirectory]:
    """Hold the state directory, made with mode 0700 if need be. Raises `StateInUse`."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateInUse(f"another process holds {root}; stop it or choose another state_dir") from error
        remove_drafts(root, _WHOLE)
        remove_drafts(root / "instances", _INSTANCE)
        yield StateDirectory(root)
    finally:
        os.close(lock)


def _write_gpus(root: Path, gpus: Gpus) -> None:
    _write(root / _GPUS, {"gpus": jcs.loads_object(gpus.encode())})


def _machine_document(machine: Machine) -> dict[str, Any]:
    pki = machine.pki
    return {
        "ppid": pki.platform.ppid.hex(),
        "platform_instance_id": pki.platform.instance_id.hex(),
        "root": _signer_document(pki.root),
        "platform_ca": _signer_document(pki.platform_ca),
        "pck": _signer_document(pki.pck),
        "tcb_signing": _signer_document(pki.tcb_signing),
        "kms_ca": _signer_document(machine.kms.ca),
        "kms_root": machine.kms.root.hex(),
    }


def _parse_machine(document: dict[str, Any], gpus: Gpus) -> Machine:
    platform = Platform(_sized(document["ppid"], 16), _sized(document["platform_instance_id"], 16))
    pki = VendorPki(
        platform,
        root=_parse_signer(document["root"]),
        platform_ca=_parse_signer(document["platform_ca"]),
        pck=_parse_signer(document["pck"]),
        tcb_signing=_parse_signer(document["tcb_signing"]),
    )
    return Machine(pki, MockKms(_parse_signer(document["kms_ca"]), _sized(document["kms_root"], 32)), gpus)


def _signer_document(signer: Signer) -> dict[str, str]:
    key = signer.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"key": key.decode(), "certificate": signer.pem}


def _parse_signer(document: dict[str, str]) -> Signer:
    key = serialization.load_pem_private_key(document["key"].encode(), password=None)
    certificate = x509.load_pem_x509_certificate(document["certificate"].encode())
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise ValueError("a certificate that is not its key's")
    return Signer(key, certificate)


def _sized(text: str, size: int) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != size:
        raise ValueError(f"{size} bytes expected")
    return value


def _write(path: Path, document: dict[str, Any]) -> None:
    write_durably(path, jcs.dumps({"v": _VERSION, **document}))


@contextmanager
def _reading(path: Path) -> Iterator[dict[str, Any]]:
    try:
        document = jcs.loads_object(path.read_bytes())
        if document.get("v") != _VERSION:
            raise ValueError("another version")
        yield document
    except (jcs.JsonMalformed, KeyError, TypeError, AttributeError, ValueError) as error:
        raise StateCorrupt(
            f"{path} is damaged; restore it, or remove the whole state directory to become another machine"
        ) from error
