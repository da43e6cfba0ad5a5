"""It is responsible for where segments lie: whole in `seg`, or in `bare`, without the bodies of tenants' entries.

A bare file has everything else of its segment, header and footer included, so it continues the log as the whole one
does and is held to the same hashes. Where both are there, the whole one counts.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from libs.transparency.chain import domain
from services.ledger.storage import segments
from services.ledger.storage.damage import LogDamaged

SEGMENTS = "seg"
BARE = "bare"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One segment's file."""

    path: Path
    first: int
    is_bare: bool


def list_files(directory: Path) -> list[SegmentFile]:
    """Return the file of each segment, in order. Raises `LogDamaged` for what is no segment, and `OSError`."""
    whole = _named(directory / SEGMENTS)
    bare = _named(directory / BARE) if (directory / BARE).exists() else {}
    found = [SegmentFile(path, first, is_bare=False) for first, path in whole.items()]
    found += [SegmentFile(path, first, is_bare=True) for first, path in bare.items() if first not in whole]
    return sorted(found, key=lambda each: each.first)


def path_of(directory: Path, first: int, bare: Collection[int]) -> Path:
    """Return the file of the segment that begins at a leaf; `bare` are those of which the whole one is gone."""
    return directory / (BARE if first in bare else SEGMENTS) / segments.file_name(first)


def is_temporary(name: str) -> bool:
    """Whether a file in a segments' folder was never finished."""
    return name.endswith(".tmp")


def identity(footer_hash: bytes, *, is_bare: bool) -> bytes:
    """Return the hash by which a derived file names the file that it was made from: places differ in a bare one."""
    return sha256(domain("bare") + footer_hash).digest() if is_bare else footer_hash


def _named(folder: Path) -> dict[int, Path]:
    found = {}
    for name in sorted(entry.name for entry in os.scandir(folder) if not is_temporary(entry.name)):
        stem = name.removesuffix(segments.SUFFIX)
        if stem == name or len(stem) != 20 or not (stem.isascii() and stem.isdigit()):
            raise LogDamaged(name, 0, "the file is no segment and does not belong here")
        found[int(stem)] = folder / name
    return found
