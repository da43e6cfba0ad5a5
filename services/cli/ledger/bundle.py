"""It is responsible for the form of a log's bundle: files under their SHA-256, and a manifest that names them.

A bundle holds segments, signed heads, `log.json`, policies and checkpoint keys. It never holds the keyring: whoever has
a bundle has ciphertext of tenants' entries and no half of a key to it.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from libs import jcs
from libs.errors import Code, MeshError
from services.cli.terminal.inputs import InputUnreadable, read_input

MANIFEST = "manifest.json"
OBJECTS = "objects"
SEGMENTS = "seg/"
_VERSION = 1
_NAME = re.compile(
    r"log\.json|checkpoint|checkpoint\.witnessed|checkpoints\.log|keys|policy/[0-9]{1,9}\.json|seg/[0-9]{20}\.seg"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_MAX_MANIFEST = 64 << 20


class BundleMalformed(MeshError):
    """The folder or file is no bundle of a log, or lacks what its manifest names."""

    code = Code.INVALID_ARGUMENT
    reason = "BUNDLE_MALFORMED"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds."""

    origin: str
    first: int
    """Leaf with which its first segment begins."""
    size: int
    """Leaf before which its last segment ends."""
    is_to_end: bool
    files: Mapping[str, str]
    """SHA-256 by name."""

    def encode(self) -> bytes:
        return jcs.dumps(
            {
                "v": _VERSION,
                "origin": self.origin,
                "first": self.first,
                "size": self.size,
                "is_to_end": self.is_to_end,
                "files": dict(self.files),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises `BundleMalformed`."""
        try:
            value = jcs.loads_object(data)
            if value["v"] != _VERSION:
                raise ValueError("another version")
            files = value["files"]
            if not all(_NAME.fullmatch(name) and _DIGEST.fullmatch(digest) for name, digest in files.items()):
                raise ValueError("a file that no bundle has")
            if any(type(value[name]) is not kind for name, kind in _TYPES.items()) or value.keys() != _MEMBERS:
                raise ValueError("other members")
            manifest = cls(value["origin"], value["first"], value["size"], value["is_to_end"], files)
        except (jcs.JsonMalformed, KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleMalformed(f"no manifest of a bundle: {error}") from error
        return manifest


_TYPES: Mapping[str, type] = {"origin": str, "first": int, "size": int, "is_to_end": bool}
_MEMBERS = {"v", "files", *_TYPES}


class Objects(Protocol):
    """Where a bundle's files are."""

    def open(self, name: str) -> BinaryIO:
        """Raises `BundleMalformed` where there is no such file."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectsInFolder:
    path: Path

    def open(self, name: str) -> BinaryIO:
        try:
            return (self.path / name).open("rb")
        except OSError as error:
            raise BundleMalformed(f"{self.path / name} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class ObjectsInTar:
    archive: tarfile.TarFile

    def open(self, name: str) -> BinaryIO:
        try:
            found = self.archive.extractfile(name)
        except (KeyError, tarfile.TarError) as error:
            raise BundleMalformed(f"the archive has no {name}") from error
        if found is None:
            raise BundleMalformed(f"{name} is no file")
        return cast(BinaryIO, found)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that is read. Implements `LogSource`."""

    objects: Objects
    manifest: Manifest

    def segments(self) -> Sequence[str]:
        return sorted(name.removeprefix(SEGMENTS) for name in self.manifest.files if name.startswith(SEGMENTS))

    def is_bare(self, name: str) -> bool:
        """A bundle has whole segments only."""
        return False

    def open_segment(self, name: str) -> BinaryIO:
        return self._open(SEGMENTS + name)

    def read(self, name: str) -> bytes | None:
        if name not in self.manifest.files:
            return None
        with self._open(name) as file:
            return file.read()

    def open_beside(self, name: str) -> BinaryIO | None:
        return self._open(name) if name in self.manifest.files else None

    def wrong(self) -> Iterator[str]:
        """Yield the files that are not what the manifest says."""
        for name, digest in self.manifest.files.items():
            with self._open(name) as file:
                if digest_of(file) != digest:
                    yield name

    def _open(self, name: str) -> BinaryIO:
        try:
            return self.objects.open(f"{OBJECTS}/{self.manifest.files[name]}")
        except KeyError as error:
            raise BundleMalformed(f"the bundle has no {name}") from error


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path.is_file() and tarfile.is_tarfile(path))


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Raises `InputUnreadable` or `BundleMalformed`."""
    if path.is_dir():
        yield Bundle(ObjectsInFolder(path), Manifest.decode(read_input(path / MANIFEST)))
        return
    try:
        with tarfile.open(path, "r:") as archive:
            objects = ObjectsInTar(archive)
            with objects.open(MANIFEST) as file:
                manifest = Manifest.decode(file.read(_MAX_MANIFEST))
            yield Bundle(objects, manifest)
    except (OSError, tarfile.TarError) as error:
        raise InputUnreadable(f"cannot read {path}: {error}") from error


def digest_of(file: BinaryIO, length: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its beginning."""
    return copied(file, None, length)


def copied(file: BinaryIO, to: BinaryIO | None, length: int | None = None) -> str:
    """Copy a file, or its beginning, and return the SHA-256 of what was copied. Raises `BundleMalformed` if it ends."""
    content, left = sha256(), length
    while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
        content.update(chunk)
        if to is not None:
            to.write(chunk)
        left = None if left is None else left - len(chunk)
    if left:
        raise BundleMalformed("a file became shorter while it was read")
    return content.hexdigest()
