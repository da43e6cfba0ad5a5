"""It is responsible for a copy of whatever a start cuts off: torn, by all appearance, yet perhaps damaged after all."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from libs.files import fsync_dir, remove_drafts, write_durably

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


def remove_unfinished(directory: Path) -> None:
    """Remove copies that a killed process was making."""
    remove_drafts(directory / LOST_AND_FOUND, _SAVED)
