"""It is responsible for the epochs of every key: which is the newest, since when, and which keys are refused for ever.

The book is one sealed file, rewritten whole before any change takes effect. It holds besides what the log may not have
heard yet, and how far the log was read, so that a start goes on where the last one stopped. Names of vaults have an
epoch each calendar month and no page of their own until they are retired.

A full book takes a tenth of a second to write, so a thread does. Changes are made one after the other; meanwhile the
book says what it said before, and whoever makes a change waits for the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from libs.errors import Code, MeshError
from libs.policy.releases import KEY_NAME, KeyRelease
from services.kms.changes import MAX_EPOCH, Change, ChangeMalformed
from services.kms.pages import Page, Pages, Place, parse
from services.kms.sealed_file import SealDamaged, SealedFile

BOOK_FILE = "keys.sealed"
_MAGIC = b"TMKBOOK1"
_MAX_KEYS = 10_000
_MAX_UNDER_ONE_RULE = 1000
"""So many names below one wildcard: whoever may use one may otherwise use the whole book up."""
_VAULT_PREFIX = "ledger-vault/"


class KeyBookNotOpened(MeshError):
    """The sealed book of keys exists and cannot be read. It is not replaced: restore it, or remove it on purpose."""

    code = Code.DATA_LOSS
    reason = "KEY_BOOK_NOT_OPENED"


class KeyBookFull(MeshError):
    """So many names have an epoch already, in all or under one rule, that no other gets one."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "KEY_BOOK_FULL"


class KeyNameMalformed(MeshError):
    """Not a key name."""

    code = Code.INVALID_ARGUMENT
    reason = "KEY_NAME_MALFORMED"


class KeyEpochUnknown(MeshError):
    """That key has no such epoch."""

    code = Code.NOT_FOUND
    reason = "KEY_EPOCH_UNKNOWN"


class KeyRetired(MeshError):
    """The key is refused for ever."""

    reason = "KEY_RETIRED"


class KeyEpochNotNext(MeshError):
    """Only the epoch after the newest can begin."""

    reason = "KEY_EPOCH_NOT_NEXT"


class KeyEpochsFixed(MeshError):
    """The epochs of this key follow the calendar, or there is only one."""

    reason = "KEY_EPOCHS_FIXED"


class KeyBook:
    """The epochs of one KMS's keys."""

    def __init__(self, folder: Path, key: bytes, clock: Callable[[], float] = time.time) -> None:
        """Open the book; an absent one is empty. Raises `KeyBookNotOpened`."""
        self._file = SealedFile(folder / BOOK_FILE, _MAGIC, key)
        self._clock = clock
        self._changing = asyncio.Lock()
        try:
            sealed = self._file.read()
            self._pages = Pages() if sealed is None else parse(sealed)
        except (SealDamaged, ChangeMalformed) as error:
            raise KeyBookNotOpened(str(error)) from error

    @property
    def pages(self) -> Pages:
        return self._pages

    def newest(self, name: str) -> int:
        """Return the newest epoch of a key. Raises `KeyNameMalformed`, `KeyRetired`."""
        if not KEY_NAME.fullmatch(name):
            raise KeyNameMalformed("a key name is lower-case segments between slashes, 128 characters at most")
        page = self._pages.keys.get(name)
        if page is not None and page.retired:
            raise KeyRetired(f"{name} is retired")
        if name.startswith(_VAULT_PREFIX):
            return self._month()
        return 1 if page is None else page.epoch

    def resolve(self, name: str, epoch: int) -> int:
        """Return the epoch meant, 0 being the newest. Raises `KeyNameMalformed`, `KeyRetired`, `KeyEpochUnknown`."""
        newest = self.newest(name)
        if epoch > newest:
            raise KeyEpochUnknown(f"{name} has no epoch {epoch} yet")
        return epoch or newest

    async def note_use(self, name: str, rule: KeyRelease) -> None:
        """Remember, durably, that a key is in use under a rule: its age counts from the first time. Raises
        `KeyBookFull`.
        """
        if self._is_noted(name):
            return
        async with self._changing:
            if self._is_noted(name):
                return
            self._require_room(name)
            if sum(map(rule.covers, self._pages.keys)) >= _MAX_UNDER_ONE_RULE:
                raise KeyBookFull(f"{_MAX_UNDER_ONE_RULE} keys are in use under {rule.pattern}")
            page = Page(1, int(self._clock() * 1000))
            await self._write(replace(self._pages, keys={**self._pages.keys, name: page}))

    async def change(self, change: Change) -> bool:
        """Make a change of this KMS's own, durably; return False for one that was made already, by whomever.

        It is unlogged until `hear` is told of it. Raises `KeyNameMalformed`, `KeyRetired`, `KeyEpochNotNext`,
        `KeyEpochsFixed`, `KeyBookFull`.
        """
        async with self._changing:
            if self._is_made(change):
                return False
            newest = self.newest(change.name)
            if change.epoch is not None:
                if change.name.startswith(_VAULT_PREFIX):
                    raise KeyEpochsFixed(f"{change.name} has a new epoch each month, by the calendar")
                if change.epoch != newest + 1 or change.epoch > MAX_EPOCH:
                    raise KeyEpochNotNext(f"the newest epoch of {change.name} is {newest}: only {newest + 1} can begin")
            self._require_room(change.name)
            pages = self._pages.after([change])
            await self._write(replace(pages, unlogged=(*pages.unlogged, change)))
            return True

    async def hear(self, changes: Sequence[Change], place: Place) -> list[Change]:
        """Take what the log says up to a place; return what this book did not have. Durable before it returns."""
        async with self._changing:
            new = [change for change in changes if not self._pages.has(change)]
            unlogged = tuple(change for change in self._pages.unlogged if change not in changes)
            pages = replace(self._pages.after(changes), unlogged=unlogged, place=place)
            if replace(pages, place=_untold(place)) != replace(self._pages, place=_untold(self._pages.place)):
                await self._write(pages)
            else:
                self._pages = pages
            return new

    def forget_place(self) -> None:
        """Have the log read from its start; which policy it has stays known.

        Call it before anything changes the book.
        """
        self._pages = replace(self._pages, place=Place(policy_version=self._pages.place.policy_version))

    async def keep_place(self) -> None:
        """Make the place in the log durable. Without it a start would read a stretch again, and learn nothing."""
        async with self._changing:
            await self._write(self._pages)

    def _is_noted(self, name: str) -> bool:
        return name in self._pages.keys or name.startswith(_VAULT_PREFIX)

    def _is_made(self, change: Change) -> bool:
        page = self._pages.keys.get(change.name)
        if page is None:
            return False
        return page.retired if change.epoch is None else not page.retired and page.epoch == change.epoch

    def _require_room(self, name: str) -> None:
        if name not in self._pages.keys and len(self._pages.keys) >= _MAX_KEYS:
            raise KeyBookFull(f"{_MAX_KEYS} keys are in use: {name} would be one more")

    async def _write(self, pages: Pages) -> None:
        """Make these pages durable and then what the book says. The caller MUST hold `_changing`.

        A caller that is cancelled meanwhile waits for the disk all the same, still holding it: the next change must
        begin with what became durable.
        """
        writing = asyncio.get_running_loop().run_in_executor(None, lambda: self._file.write(pages.encode()))
        cancelled: asyncio.CancelledError | None = None
        while not writing.done():
            try:
                await asyncio.wait({writing})
            except asyncio.CancelledError as error:
                cancelled = error
        if writing.exception() is None:
            self._pages = pages
        if cancelled is not None:
            raise cancelled
        writing.result()

    def _month(self) -> int:
        """Months since January 1970, from 1."""
        now = time.gmtime(self._clock())
        return (now.tm_year - 1970) * 12 + now.tm_mon


def _untold(place: Place) -> Place:
    """A place whose token says nothing: to read a stretch of the log again does no harm."""
    return replace(place, token=b"")
