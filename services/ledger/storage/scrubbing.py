"""It is responsible for reading all that is sealed again and again, slowly: a start passes over it, and disks forget.

What it finds ends the ledger. The damaged segment's derived file is removed first, so that the next start reads that
segment, says where the damage is, and refuses; a derived file that is itself damaged is only made anew by it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

import structlog

from services.ledger.storage import segments
from services.ledger.storage.bare import verify_bare
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.segment_files import SegmentFile, identity, path_of
from services.ledger.storage.segment_index import SegmentIndex
from services.ledger.storage.store import LogStore

_CHUNK = 1 << 20
_BETWEEN_SECONDS = 60.0

log = structlog.get_logger()


class Scrubber:
    """Reads one log's sealed segments and derived files, from the disk and not from its cache."""

    def __init__(
        self,
        store: LogStore,
        megabytes_per_second: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store, self._pause = store, pause
        self._seconds_per_byte = 1e-6 / megabytes_per_second

    async def keep(self) -> NoReturn:
        """Scrub for ever. Raises `LogDamaged` or `PageDamaged`."""
        while True:
            await self._pause(_BETWEEN_SECONDS)
            count = await self.scrub()
            log.debug("the sealed segments are whole", count=count)

    async def scrub(self) -> int:
        """Read all that is sealed once and return how many segments that is. Raises `LogDamaged` or `PageDamaged`."""
        files = self._store.index.files
        for each in files:
            await self._read(each)
            await asyncio.to_thread(each.verify)
        return len(files)

    async def _read(self, derived: SegmentIndex) -> None:
        path = path_of(self._store.directory, derived.first, self._store.bare)
        try:
            sound = await (self._bare if derived.first in self._store.bare else self._whole)(path, derived)
        except (OSError, segments.SegmentMalformed, LogDamaged):
            sound = False
        if not sound:
            derived.remove()
            log.error("a sealed segment is damaged", file=path.name)
            raise LogDamaged(path.name, 0, "it is not what its footer says; the next start names the byte")

    async def _whole(self, path: Path, derived: SegmentIndex) -> bool:
        content = segments.ContentHash()
        with path.open("rb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size - segments.FOOTER_SIZE
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while left > 0:
                read = await asyncio.to_thread(_hash_some, file, content, left)
                await self._pause(read * self._seconds_per_byte)
                left -= read
            end = file.read(segments.FOOTER_SIZE)
        footer = segments.Footer.parse(end)
        return segments.footer_hash(end) == derived.footer_hash and content.digest() == footer.content_hash

    async def _bare(self, path: Path, derived: SegmentIndex) -> bool:
        reading = verify_bare(SegmentFile(path, derived.first, is_bare=True))
        while isinstance(read := await asyncio.to_thread(next, reading, None), int):
            await self._pause(read * self._seconds_per_byte)
        with path.open("rb") as file:
            file.seek(-segments.FOOTER_SIZE, os.SEEK_END)
            footer_hash = segments.footer_hash(file.read())
        return identity(footer_hash, is_bare=True) == derived.footer_hash


def _hash_some(file: BinaryIO, content: segments.ContentHash, most: int) -> int:
    chunk = file.read(min(_CHUNK, most))
    if not chunk:
        raise OSError("the file became shorter")
    content.update(chunk)
    return len(chunk)
