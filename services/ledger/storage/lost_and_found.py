"""It is responsible for copies of what a log's folder is to be without: a tail that a start cuts off, which is torn by
all appearance, yet perhaps damaged after all; and a whole file that an operator has set aside.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from libs.files import fsync_dir, remove_drafts, write_durably, writing_durably

LOST_AND_FOUND = "lost+found"
_SAVED = re.compile(r"[^.]+\.[0-9]+\.[0-9a-f]{16}")


def keep(directory: Path, path: Path, start: int) -> Path | None:
    """Copy what a file holds from `start` on into the log's folder, where that is anything but zeros.

    Returns where it lies, and IS durable. Raises `OSError`.
    """
    with path.open("rb") as file:
        file.seek(start)
        tail = file.read().rstrip(b"\0")
    if not tail:
        return None
    folder = directory / LOST_AND_FOUND
    folder.mkdir(mode=0o700, exist_ok=True)
    saved = folder / f"{path.stem}.{start}.{sha256(tail).hexdigest()[:16]}"
    write_durably(saved, tail)
    fsync_dir(directory)
    return saved


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole file's copy."""

    path: Path
    size: int
    digest: str
    """SHA-256, hexadecimal."""


def keep_whole(directory: Path, path: Path) -> Kept:
    """Copy a file that nobody writes into the log's folder, byte for byte. The copy IS durable. Raises `OSError`."""
    folder = directory / LOST_AND_FOUND
    folder.mkdir(mode=0o700, exist_ok=True)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
        size = file.tell()
        saved = folder / f"{path.stem}.0.{digest[:16]}"
        file.seek(0)
        with writing_durably(saved) as copy:
            shutil.copyfileobj(file, copy)
    fsync_dir(directory)
    return Kept(saved, size, digest)


def remove_unfinished(directory: Path) -> None:
    """Remove copies that a killed process was making."""
    remove_drafts(directory / LOST_AND_FOUND, _SAVED)
