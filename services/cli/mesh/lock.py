"""It is responsible for one mesh per state folder: who holds the folder, and how another command finds the holder.

The lock is the kernel's (an open-file-description lock), so it ends with its holder however that ends. Whoever only
asks does not take it, not even for a moment: a mesh that starts meanwhile would be refused, or another asker misled.
The file's text, the holder's process id, is only believed of a process that has the very file open.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from libs.errors import MeshError

_FLOCK = struct.Struct("hhqqi0q")
"""`struct flock` (fcntl(2)): type, whence, start, length, pid; zeros mean the whole file, asked for by no process."""
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class MeshRunning(MeshError):
    """Another `teemesh up` holds the state folder."""

    reason = "MESH_RUNNING"


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold the folder's lock file; its folder must exist. Raises `MeshRunning`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except BlockingIOError as error:
            raise MeshRunning(
                f"a mesh runs in {path.parent}: stop it with teemesh down, or choose a --state"
            ) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Say whether somebody holds the lock now, without touching it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
    finally:
        os.close(descriptor)
    held_as: int = _FLOCK.unpack(found)[0]
    return held_as != fcntl.F_UNLCK


def open_holder(path: Path) -> int | None:
    """Return a pidfd of the process that holds the lock; the caller closes it. None when that is not known: nobody
    holds it, or its holder is just beginning or ending.
    """
    if not is_held(path):
        return None
    try:
        pid = int(path.read_text())
        process = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    # The pidfd names one process for good; only now is it asked whether that process is the holder.
    if _has_open(pid, path):
        return process
    os.close(process)
    return None


def _has_open(pid: int, path: Path) -> bool:
    wanted = path.stat()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found = descriptor.stat()
            except FileNotFoundError:
                continue  # Closed meanwhile.
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    except OSError:
        return False  # Gone, or another user's.
    return False
