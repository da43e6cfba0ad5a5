"""Responsible for not hashing the same files twice while a machine is up: digests by what the filesystem says of them.

Who writes to a file changes its inode, size, time of modification or, whatever else is set back, time of change. None
of this says anything about a disk that was away: after another boot everything is read again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from libs import jcs
from libs.files import write_durably

_YOUNG_NS = 2_000_000_000
"""A second write within one tick of the filesystem's clock shows in none of its times. A tick is some milliseconds."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class FileState:
    """What changes when a file does. Times in ns."""

    device: int
    inode: int
    size: int
    """Bytes."""
    modified: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def key(self) -> str:
        return ":".join(map(str, astuple(self)))


class Remembered:
    """SHA-256 digests by state, in a file that only this user can write. May be asked in any thread."""

    def __init__(
        self, path: Path | None, boot_id: str | None = None, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Without a path nothing is kept. What cannot be read, or is of another boot, is nothing."""
        self._path = path
        self._clock_ns = clock_ns
        self._boot_id = _BOOT_ID.read_text().strip() if boot_id is None else boot_id
        self._lock = threading.Lock()
        self._known = {} if path is None else _read(path, self._boot_id)
        self._used: dict[str, str] = {}

    def digest(self, state: FileState) -> bytes | None:
        """Return the digest of a file that was hashed in this state."""
        with self._lock:
            known = self._known.get(state.key)
            if known is None:
                return None
            self._used[state.key] = known
            return bytes.fromhex(known)

    def add(self, state: FileState, digest: bytes) -> None:
        """Remember a file that was not written to lately."""
        if self._clock_ns() - state.changed > _YOUNG_NS:
            with self._lock:
                self._used[state.key] = digest.hex()

    def keep(self) -> None:
        """Write what was asked for or added, and forget the rest. Raises `OSError`."""
        with self._lock:
            if self._path is not None and self._used != self._known:
                write_durably(self._path, jcs.dumps({"boot_id": self._boot_id, "sha256": dict(self._used)}))
                self._known = dict(self._used)


def _read(path: Path, boot_id: str) -> dict[str, str]:
    try:
        value = jcs.loads_object(path.read_bytes())
        if value["boot_id"] != boot_id:
            return {}
        return {str(state): bytes.fromhex(digest).hex() for state, digest in value["sha256"].items()}
    except (OSError, jcs.JsonMalformed, KeyError, TypeError, ValueError, AttributeError):
        return {}
