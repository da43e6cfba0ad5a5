"""Responsible for remembering, durably, what an issuer may have sent, until the ledger has it and its response is out.

One writer task appends records and syncs each before the next; whatever was asked for meanwhile becomes durable
together. Files are named by a running number and their issuer; a new issuer, and a full file, begin the next. Files are
deleted oldest first, once nothing in them is open. A failed write or sync is never tried again: Linux may have dropped
the pages, so the process ends and the next start reads what is really there.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from libs.errors import Code, MeshError
from libs.events.journal import JournalDamaged, encode_record, scan
from libs.events.keyset import PreviousIssuer
from libs.events.outbox_items import Cut, Item, Opened, OutboxDamaged, Stored, decode_items, encode_items
from libs.events.outbox_state import OutboxState

MAGIC = b"TMO1"
DEFAULT_MAX_BYTES = 256 * 1024 * 1024
DEFAULT_PART_BYTES = 16 * 1024 * 1024
_MAX_ITEMS = 1024
_CUT_SECONDS = 0.02
_NAME = re.compile(r"([0-9]{10})-([0-9a-f]{64})\.outbox")

log = structlog.get_logger()


class OutboxFull(MeshError):
    """The outbox has no room: the ledger has not answered for too long. Serve nothing until it does."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "OUTBOX_FULL"


class OutboxShareFull(OutboxFull):
    """As much of the outbox is this tenant's as is left of it: what is left is for others."""

    reason = "OUTBOX_SHARE_FULL"


class OutboxFailed(MeshError):
    """The outbox cannot be written. What was asked for may or may not be durable; the process must end."""

    code = Code.UNAVAILABLE
    reason = "OUTBOX_FAILED"


class OutboxInUse(MeshError):
    """Another process holds this outbox."""

    reason = "OUTBOX_IN_USE"


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    issuer: bytes
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: Item
    durable: asyncio.Future[None]


class Outbox:
    """An open outbox: what earlier starts left, and this start's own file."""

    def __init__(self, folder: Path, issuer: bytes, max_bytes: int, part_bytes: int, reserve_bytes: int) -> None:
        self._folder = folder
        self._issuer = issuer
        self._max_bytes = max_bytes
        self._part_bytes = part_bytes
        self._reserve_bytes = reserve_bytes
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._company: asyncio.TimerHandle | None = None
        """What ends the wait of the cuts for company."""
        self._closing = False
        self._file: int | None = None
        self.state = OutboxState()
        self._parts = _read_parts(folder, self.state)
        self._size = sum(part.size for part in self._parts)
        self.earlier = tuple(self.state.issuers())
        self.previous: PreviousIssuer | None = self.state.latest()

    def append(self, item: Item) -> asyncio.Future[None]:
        """Ask for an item to become durable; the future resolves once it is. Order is kept.

        A cut waits a little for company: nobody waits for it, and a sync of its own would hold up those that somebody
        waits for. Where it is lost, an amendment says less than is known, nothing wrong.
        """
        loop = asyncio.get_running_loop()
        durable: asyncio.Future[None] = loop.create_future()
        if isinstance(item, Stored):
            self.state.claim(item)
        self._waiting.append(_Waiting(item, durable))
        if not isinstance(item, Cut):
            self._wake.set()
        elif self._company is None:
            self._company = loop.call_later(_CUT_SECONDS, self._wake.set)
        return durable

    def require_room(self, size: int, *, essential: bool = False) -> None:
        """Raise `OutboxFull` unless `size` more bytes fit. Answers and cuts, which make room, are always taken.

        The reserve is for what is essential: nothing else, however much of it, takes the room of that.
        """
        if size > self._left(essential=essential):
            raise OutboxFull("the ledger has not answered for too long")

    def require_share(self, tenant: str, size: int, queued: int) -> None:
        """Raise `OutboxShareFull` where as much is a tenant's as would be left by `size` more bytes. `queued` bytes of
        it are not here yet.

        So one that floods it has half of the outbox at most, and several leave something to whoever has less.
        """
        if self.state.held(tenant) + queued > self._left(essential=False) - size:
            raise OutboxShareFull(
                "the ledger has not answered for too long, and too much of what waits is this tenant's"
            )

    def _left(self, *, essential: bool) -> int:
        return self._max_bytes - (0 if essential else self._reserve_bytes) - self._size

    @property
    def parts(self) -> list[Path]:
        """The files that exist, oldest first."""
        return [part.path for part in self._parts]

    async def run(self, thread: ThreadPoolExecutor) -> None:
        """Write until closed. Raises `OutboxFailed`, which must end the process."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._company is not None:
                self._company.cancel()
                self._company = None
            while self._waiting:
                taken, self._waiting = self._waiting[:_MAX_ITEMS], self._waiting[_MAX_ITEMS:]
                items = [waiting.item for waiting in taken]
                try:
                    part = await loop.run_in_executor(thread, self._write, items)
                except OSError as error:
                    failure = OutboxFailed(f"cannot write the outbox: {os.strerror(error.errno or 0)}")
                    self._fail([*taken, *self._waiting], failure)
                    raise failure from error
                self.state.apply(part, items)
                for waiting in taken:
                    if not waiting.durable.done():
                        waiting.durable.set_result(None)
                # The next record waits for this, so the thread is asked only when there is a file to delete.
                if self._oldest_is_finished():
                    await loop.run_in_executor(thread, self._delete_finished)
            if self._closing:
                return

    def close(self) -> None:
        """Let `run` end once everything asked for is durable."""
        self._closing = True
        self._wake.set()

    def begin(self) -> None:
        """Write this issuer's first record, then drop the earlier files that nothing needs any more."""
        self._begin_part(0)
        self._delete_finished()

    def close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _fail(self, waiting: Sequence[_Waiting], failure: OutboxFailed) -> None:
        for one in waiting:
            if not one.durable.done():
                one.durable.set_exception(failure)
                # Whoever waits sees it; where nobody does, the writer's own failure says it.
                one.durable.exception()

    def _write(self, items: Sequence[Item]) -> int:
        """Append one record and sync it; returns the number of the file. Runs in the writer's thread."""
        record = encode_record(MAGIC, encode_items(items))
        if self._parts[-1].size + len(record) > self._part_bytes:
            self._begin_part(self.state.last_seq(self._issuer))
        if self._file is None:
            raise OSError("the outbox is closed")
        _write_all(self._file, record)
        os.fdatasync(self._file)
        part = self._parts[-1]
        self._parts[-1] = _Part(part.number, part.issuer, part.path, part.size + len(record))
        self._size += len(record)
        return part.number

    def _begin_part(self, last_seq: int) -> None:
        number = self._parts[-1].number + 1 if self._parts else 1
        path = self._folder / f"{number:010d}-{self._issuer.hex()}.outbox"
        opened = Opened(self._issuer, last_seq, self.previous)
        record = encode_record(MAGIC, encode_items([opened]))
        self.close_file()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _write_all(self._file, record)
        os.fsync(self._file)
        _sync_folder(self._folder)
        self.state.apply(number, [opened])
        self._parts.append(_Part(number, self._issuer, path, len(record)))
        self._size += len(record)

    def _oldest_is_finished(self) -> bool:
        return len(self._parts) > 1 and self.state.finished(self._parts[0].number)

    def _delete_finished(self) -> None:
        # Oldest first: a later file may hold the answers to an earlier one, never the other way round.
        while self._oldest_is_finished():
            part = self._parts.pop(0)
            self._size -= part.size
            self.state.forget(part.number)
            part.path.unlink()


@asynccontextmanager
async def open_outbox(
    folder: Path,
    issuer: bytes,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    part_bytes: int = DEFAULT_PART_BYTES,
    reserve_bytes: int = 0,
) -> AsyncIterator[Outbox]:
    """Read what earlier starts left and begin this start's file; on exit everything asked for is durable.

    Raises `OutboxInUse`, `OutboxDamaged`, and inside a group `OutboxFailed` when it cannot be written any more.
    """
    lock = _lock(folder)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="outbox") as thread:
            loop = asyncio.get_running_loop()
            outbox = await loop.run_in_executor(thread, Outbox, folder, issuer, max_bytes, part_bytes, reserve_bytes)
            await loop.run_in_executor(thread, outbox.begin)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(outbox.run(thread))
                    try:
                        yield outbox
                    finally:
                        outbox.close()
            finally:
                thread.shutdown(wait=True)
                outbox.close_file()
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise OutboxInUse(f"another process holds {folder}") from error
    return lock


def _read_parts(folder: Path, state: OutboxState) -> list[_Part]:
    """Replay every file. Cuts a torn tail; raises `OutboxDamaged` for anything else."""
    found = []
    for path in sorted(folder.glob("*.outbox")):
        name = _NAME.fullmatch(path.name)
        if name is None:
            raise OutboxDamaged(f"{path} is no outbox file's name")
        found.append((int(name[1]), bytes.fromhex(name[2]), path))
    parts: list[_Part] = []
    for position, (number, issuer, path) in enumerate(found):
        if number != found[0][0] + position:
            raise OutboxDamaged(f"a file before {path} is missing")
        # A process begins its next file only after everything in the one before is synced.
        may_be_torn = position + 1 == len(found) or found[position + 1][1] != issuer
        size = _read_part(path, number, issuer, state, may_be_torn=may_be_torn)
        if size == 0 and position + 1 == len(found):
            path.unlink()
            _sync_folder(folder)
        else:
            parts.append(_Part(number, issuer, path, size))
    return parts


def _read_part(path: Path, number: int, issuer: bytes, state: OutboxState, *, may_be_torn: bool) -> int:
    data = path.read_bytes()
    try:
        found = scan(MAGIC, data)
    except JournalDamaged as error:
        raise OutboxDamaged(f"{path}: {error}") from error
    if found.length != len(data):
        if not may_be_torn:
            raise OutboxDamaged(f"{path} is damaged at byte {found.length}")
        log.warning("outbox tail was torn", path=str(path), kept_bytes=found.length, cut_bytes=len(data) - found.length)
        _cut_tail(path, found.length)
    for index, payload in enumerate(found.payloads):
        items = list(decode_items(payload))
        opens = len(items) == 1 and isinstance(items[0], Opened) and items[0].issuer == issuer
        if opens != (index == 0):
            raise OutboxDamaged(f"{path} does not begin as it must")
        for item in items:
            if isinstance(item, Stored):
                state.claim(item)
        state.apply(number, items)
    return found.length


def _cut_tail(path: Path, length: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(file, length)
        os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
