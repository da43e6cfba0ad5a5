"""Responsible for hashing a model's files, on all cores, and for knowing later that they are still the same files.

Every file below a folder counts, also those that an engine may not read: what it reads is for no one here to guess.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from libs.errors import Code, MeshError
from libs.weights.gguf import GgufMalformed, is_shard
from libs.weights.manifest import MOST_FILES, Manifest, WeightsFile
from libs.weights.remembered import FileState, Remembered

_PIECE = 4 << 20
"""Bytes that are read and hashed at once."""

Progress = Callable[[int, int], None]
"""Told how many bytes are hashed, of how many; in any thread."""


class WeightsMissing(MeshError):
    """There are no model weights where the configuration says, or what lies there cannot be read."""

    reason = "WEIGHTS_MISSING"


class WeightsChanged(MeshError):
    """A file is not the one that was measured any more."""

    code = Code.FAILED_PRECONDITION
    reason = "WEIGHTS_CHANGED"


@dataclass(frozen=True, slots=True)
class MeasuredWeights:
    """A model's files as they were found."""

    path: Path
    manifest: Manifest
    states: tuple[FileState, ...]
    """Of the manifest's files, in its order."""
    ways: Mapping[str, FileState]
    """Of what leads to them, by name: every folder and link."""

    @property
    def loaded(self) -> Path:
        """What an engine is given: the file where the weights are one, also where it lies in a folder of its own, as
        what comes encrypted is opened; else their folder."""
        first, *more = self.manifest.files
        return self.path / first.name if not more and self.path.is_dir() else self.path

    async def require_unchanged(self) -> None:
        """Raise `WeightsChanged` where a file is another than was measured, or was written to, or there are others, or
        where a folder or link among them was another meanwhile; `WeightsMissing` where they cannot be looked at.

        It looks at what the filesystem says of them, not at their content: who writes to a file cannot keep its time of
        change from showing that.
        """
        await asyncio.to_thread(self._require_unchanged)

    def _require_unchanged(self) -> None:
        measured = dict(zip((file.name for file in self.manifest.files), self.states, strict=True))
        try:
            there = {name: FileState.of(path.stat()) for name, path in _files(self.path)}
            ways = _ways(self.path)
        except OSError as error:
            raise WeightsMissing(f"cannot read the weights at {self.path}: {error.strerror}") from error
        for name in sorted(measured.keys() | there.keys()):
            if measured.get(name) != there.get(name):
                raise WeightsChanged(f"{name} has changed since the weights were measured")
        # A folder that was another's for a while has its files as they were, and shows that it was moved itself.
        for name in sorted(self.ways.keys() | ways.keys()):
            if self.ways.get(name) != ways.get(name):
                raise WeightsChanged(f"{name} leads elsewhere, or did, since the weights were measured")


async def measure(
    path: Path, remembered: Remembered | None = None, progress: Progress = lambda done, of: None
) -> MeasuredWeights:
    """Hash a weights file, or every file below a folder. Raises `WeightsMissing` or `WeightsChanged`.

    What is remembered is not read again. A caller that gives up ends the reading, too.
    """
    ended = threading.Event()
    try:
        return await asyncio.to_thread(_measure, path, remembered or Remembered(None), progress, ended)
    finally:
        ended.set()


def _measure(path: Path, remembered: Remembered, progress: Progress, ended: threading.Event) -> MeasuredWeights:
    try:
        ways = _ways(path)  # First: what is moved while files are read shows later.
        found = sorted(_files(path))
        hashing = _Hashing(sum(file.stat().st_size for _, file in found), remembered, progress, ended)
        # hashlib leaves the interpreter to others while it hashes.
        with ThreadPoolExecutor(os.cpu_count() or 1, "weights") as threads:
            tasks = [threads.submit(hashing.hash, name, file) for name, file in found]
        for task in tasks:
            error = task.exception()
            if error is not None and not isinstance(error, _Ended):
                raise error
        results = [task.result() for task in tasks]
    except OSError as error:
        raise WeightsMissing(f"cannot read the weights at {path}: {error.strerror}") from error
    with suppress(OSError):
        # Where nothing can be written, as on a full disk, they are hashed anew the next time.
        remembered.keep()
    manifest = Manifest(tuple(file for file, _ in results))
    return MeasuredWeights(path, manifest, tuple(state for _, state in results), ways)


class _Ended(Exception):
    """Nobody waits for this any more."""


class _Hashing:
    """The files of one model, in several threads."""

    def __init__(self, size: int, remembered: Remembered, progress: Progress, ended: threading.Event) -> None:
        self._size = size
        self._remembered = remembered
        self._progress = progress
        self._ended = ended
        self._lock = threading.Lock()
        self._done = 0

    def hash(self, name: str, path: Path) -> tuple[WeightsFile, FileState]:
        """Raises `OSError`, `WeightsChanged`, or `_Ended` where nobody waits."""
        try:
            with path.open("rb", buffering=0) as file:
                state = FileState.of(os.fstat(file.fileno()))
                digest = self._remembered.digest(state)
                if digest is None:
                    digest = self._read(file)
                    if FileState.of(os.fstat(file.fileno())) != state:
                        raise WeightsChanged(f"{name} changed while it was read")
                    self._remembered.add(state, digest)
                else:
                    self._count(state.size)
                return WeightsFile(name, digest, state.size), state
        except BaseException:
            self._ended.set()
            raise

    def _read(self, file: FileIO) -> bytes:
        digest, buffer = hashlib.sha256(), bytearray(_PIECE)
        view = memoryview(buffer)
        while (read := file.readinto(buffer)) > 0:
            if self._ended.is_set():
                raise _Ended
            digest.update(view[:read])
            self._count(read)
        return digest.digest()

    def _count(self, more: int) -> None:
        with self._lock:
            self._done += more
            self._progress(self._done, self._size)


def _files(path: Path) -> list[tuple[str, Path]]:
    """Return every file's name in the manifest, and where it is. Raises `OSError` or `WeightsMissing`."""
    if not path.is_dir():
        found = [(path.name, path)]
    else:
        found = [(file.relative_to(path).as_posix(), file) for file in _below(path)]
    for name, file in found:
        # A link to a folder would have files in it that nobody measured; a pipe would never end.
        if not stat.S_ISREG(file.stat().st_mode):
            raise WeightsMissing(f"{name} is neither a file nor a link to one")
    if not 0 < len(found) <= MOST_FILES:
        raise WeightsMissing(f"weights are 1 to {MOST_FILES} files, and {path} has {len(found)}")
    if not path.is_dir():
        _require_whole(path)
    return found


def _require_whole(path: Path) -> None:
    """Of one file: llama.cpp loads the shards beside a first one, and nobody measured those."""
    try:
        shard = is_shard(path)
    except GgufMalformed as error:
        raise WeightsMissing(f"{path} begins as GGUF does and cannot be read: {error}") from error
    if shard:
        raise WeightsMissing(
            f"{path} is one GGUF shard of several, and the others would be loaded unmeasured: merge them into one file "
            "(llama-gguf-split --merge), or give their folder to an engine that takes folders"
        )


def _ways(path: Path) -> dict[str, FileState]:
    """Return the state of the path itself, of every folder below, and of every link. Raises `OSError`."""
    found = {".": FileState.of(path.lstat())}
    if path.is_symlink():
        found["./"] = FileState.of(path.stat())
    if path.is_dir():
        for entry in _entries(path):
            if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                found[Path(entry.path).relative_to(path).as_posix()] = FileState.of(os.lstat(entry.path))
    return found


def _below(folder: Path) -> Iterator[Path]:
    return (Path(entry.path) for entry in _entries(folder) if not entry.is_dir(follow_symlinks=False))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))
