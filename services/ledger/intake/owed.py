"""It is responsible for what the ledger still owes its log: the faults of others that it found, until its outbox has
them.

Only reading the stream empties the outbox, so reading cannot wait until the outbox has room; and what is left out is
evidence, which whoever causes faults fast enough would have forgotten. So it lies in a file of its own, which has no
other bound than the quarantine beside it: what is refused is kept there too. Who writes adds to it; whether this member
writes or another does, it says what is in it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import structlog

from libs import jcs
from libs.events.outbox import OutboxFull
from libs.transparency.leaf import Kind
from services.ledger.intake.faults import Saying
from services.ledger.storage import records_log
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.damage import LogDamaged

NAME = "owed.log"
_TOGETHER = 64
"""As many go into one batch of a publisher's."""
_RETRY_SECONDS = 0.5
_TOLD = "told"

log = structlog.get_logger()


def stored(saying: Saying) -> bytes:
    """Return the record of something that is owed."""
    return jcs.dumps({"kind": saying.kind, "body": dict(saying.body)})


def unsaid(path: Path) -> Iterator[bytes]:
    """Yield the records of what is still owed that a file holds whole, whatever lies between them.

    What a whole mark says was said IS durable elsewhere, so it counts although it comes after damage: what it covers is
    in nobody's debt, were it damaged or not.
    """
    told = 0
    for _, record in records_log.read_whole(path, records_log.OWED):
        told = jcs.loads_object(record).get(_TOLD, told)
    for at, record in records_log.read_whole(path, records_log.OWED):
        if at >= told and _TOLD not in jcs.loads_object(record):
            yield record


@dataclass(frozen=True, slots=True)
class Part:
    """The next of what is owed."""

    sayings: Sequence[Saying]
    end: int
    """Up to which place in the file they are."""


class Owed:
    """The file. `add`, `first` and `settle` may run in any thread, the rest on the event loop."""

    def __init__(self, directory: Path) -> None:
        """Go on where the process before stopped. Raises `LogDamaged`, `LogBroken`."""
        self._path = directory / NAME
        self._told = 0
        end = records_log.read_each(self._path, records_log.OWED, self._recall)
        self._file = records_log.RecordsLog(self._path, records_log.OWED, end)
        if self._file.saved is not None:
            # A bit that changed in what was synced last looks like this, too.
            log.error("what was owed last was cut short", at=end, saved=str(self._file.saved))
        self._lock = threading.Lock()
        self._closed = False
        self._some = asyncio.Event()
        self._some.set()

    def add(self, sayings: Sequence[Saying]) -> None:
        """Owe more. It IS durable when this returns, and MUST be before the log steps over what is at fault.

        Raises `LogBroken`.
        """
        if sayings:
            with self._lock:
                self._file.append([stored(each) for each in sayings])

    def first(self) -> Part | None:
        """Return what is to be said next, if anything is owed. Raises `LogDamaged` where it cannot be read any more."""
        with self._lock:
            if self._told == self._file.end:
                return None
            read = records_log.read_some(self._path, records_log.OWED, self._told, _TOGETHER)
        if not read.records:
            raise LogDamaged(NAME, self._told, "what is owed has changed since it was written")
        values = [value for value in map(jcs.loads_object, read.records) if _TOLD not in value]
        return Part([Saying(Kind(value["kind"]), value["body"]) for value in values], read.end)

    def settle(self, part: Part) -> None:
        """What `first` returned is durable elsewhere: owe it no more. Raises `LogBroken`."""
        with self._lock:
            if self._closed:
                return  # Whoever opens it next says it again.
            self._told = part.end
            if part.end == self._file.end:
                self._file.empty()
                self._told = 0
            elif part.sayings:
                self._file.append([jcs.dumps({_TOLD: part.end})])

    def wake(self) -> None:
        """Something was added."""
        self._some.set()

    async def some(self) -> None:
        """Wait until something may be owed."""
        await self._some.wait()
        self._some.clear()

    def close(self) -> None:
        """Have no more written; what runs in other threads is waited for."""
        with self._lock:
            self._closed = True
            self._file.close()

    def _recall(self, record: bytes) -> None:
        self._told = jcs.loads_object(record).get(_TOLD, self._told)


class Outbox(Protocol):
    """What own entries are written to: the mesh's publisher."""

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: None) -> object:
        """Return when the entry is durable there. Raises `OutboxFull`."""
        ...


class Paying:
    """The task that says what is owed, as the outbox has room for it."""

    def __init__(self, owed: Owed, outbox: Outbox) -> None:
        self._owed = owed
        self._outbox = outbox

    async def keep(self) -> NoReturn:
        """Say it, for ever. What was said as the process died may be said again, nothing is left out.

        Raises `LogDamaged`.
        """
        while True:
            await self._owed.some()
            await self.pay()

    async def pay(self) -> None:
        """Say all that is owed. Raises `LogDamaged`."""
        while (part := await asyncio.to_thread(self._owed.first)) is not None:
            async with asyncio.TaskGroup() as tasks:
                for saying in part.sayings:
                    tasks.create_task(self._say(saying))
            await asyncio.to_thread(self._settle, part)

    async def _say(self, saying: Saying) -> None:
        while True:
            try:
                await self._outbox.enqueue(saying.kind, saying.body, vault=None)
            except OutboxFull:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    def _settle(self, part: Part) -> None:
        with ending_when_broken():
            self._owed.settle(part)
