"""The watermark: the largest size that was ever durable here, so that a torn tail is told from lost data.

Two slots are written in turn. It is only a floor: losing it loses a check, never an entry.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from services.ledger.storage.damage import LogBroken

NAME = "wm"
SLOT_SIZE = 512
_LAYOUT = struct.Struct(">8sQQQ32s32s")
_MAGIC = b"TMWM0001"
_HASHED = 480


@dataclass(frozen=True, slots=True)
class Mark:
    """A state of the log that was durable."""

    generation: int
    size: int
    epoch: int
    chain: bytes
    root: bytes

    def pack(self) -> bytes:
        body = _LAYOUT.pack(_MAGIC, self.generation, self.size, self.epoch, self.chain, self.root)
        body = body.ljust(_HASHED, b"\0")
        return body + sha256(body).digest()


@dataclass(frozen=True, slots=True)
class Marks:
    """What the watermark file says."""

    newest: Mark | None
    damaged_slots: tuple[int, ...]
    """Slots that hold something other than a mark: a torn write, or damage."""


def read(path: Path) -> Marks:
    """Read the watermark. A missing file holds no mark."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Marks(None, ())
    marks, damaged = [], []
    for slot in range(2):
        piece = data[slot * SLOT_SIZE : (slot + 1) * SLOT_SIZE]
        mark = _parse(piece, slot)
        if mark is not None:
            marks.append(mark)
        elif any(piece):
            damaged.append(slot)
    if len(data) > 2 * SLOT_SIZE:
        damaged.append(2)
    return Marks(max(marks, key=lambda mark: mark.generation, default=None), tuple(damaged))


class Watermark:
    """Writes the watermark. Owned by the one writer."""

    __slots__ = ("_descriptor", "_generation")

    def __init__(self, path: Path, newest: Mark | None) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._generation = newest.generation if newest else 0

    def raise_to(self, size: int, epoch: int, chain: bytes, root: bytes) -> None:
        """Record a state that IS durable. Becomes durable itself with the next sync. Raises `LogBroken`."""
        self._generation += 1
        mark = Mark(self._generation, size, epoch, chain, root)
        try:
            os.pwrite(self._descriptor, mark.pack(), self._generation % 2 * SLOT_SIZE)
        except OSError as error:
            raise LogBroken(f"the watermark could not be written: {error.strerror}") from error

    def sync(self) -> None:
        """Make the newest mark durable. Raises `LogBroken`."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise LogBroken(f"the watermark could not be synced: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._descriptor)


def _parse(piece: bytes, slot: int) -> Mark | None:
    if len(piece) != SLOT_SIZE or sha256(piece[:_HASHED]).digest() != piece[_HASHED:]:
        return None
    magic, generation, size, epoch, chain, root = _LAYOUT.unpack_from(piece)
    if magic != _MAGIC or generation % 2 != slot or any(piece[_LAYOUT.size : _HASHED]):
        return None
    return Mark(generation, size, epoch, chain, root)
