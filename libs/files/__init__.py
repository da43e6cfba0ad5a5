"""It is responsible for files that survive a power cut: written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{16}", re.DOTALL)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` with `data`. When this returns, the new content is on disk; until then, the old one is.

    The folder must exist. It blocks for as long as the disk takes.
    """
    with writing_durably(path, mode) as file:
        file.write(data)


@contextlib.contextmanager
def writing_durably(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Replace `path` with what the body writes, as `write_durably` does; where the body raises, nothing changes."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # Whatever the umask is.
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        raise
    fsync_dir(path.parent)


def draft_of(name: str) -> str | None:
    """Return the name of the file that a file of this name would be a draft of; None for what is no draft."""
    draft = _DRAFT.fullmatch(name)
    return None if draft is None else draft[1]


def remove_drafts(folder: Path, names: re.Pattern[str]) -> None:
    """Remove what a killed process left of files that it was writing durably: those whose whole name matches `names`.

    The caller MUST be the one process that writes them, and not be writing yet: what it removes may be a draft that
    somebody is about to put in its place. The folder need not exist; nobody else's files are touched.
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            written = draft_of(entry.name)
            if written is not None and names.fullmatch(written) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
