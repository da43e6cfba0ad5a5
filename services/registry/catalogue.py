"""It is responsible for which sessions are kept: listing them, and letting go of those that are old.

The catalogue is fed by the store alone. Every session is an entry of the ledger before it is sealed, and that stays: a
session that is let go of here is found there, by its digest.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from services.registry.following import Entry, Quiet, Whole, entries, for_ever
from services.registry.sessions import SUMMARY_PREFIX, Sessions
from services.registry.store import Bucket, StoreUnavailable
from services.registry.summaries import Summary, SummaryMalformed, decode_summary

_SWEEP_SECONDS = 60.0
_ID = re.compile(r"[0-9a-f]{64}")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Retention:
    """How long sessions are kept that have ended, and how many bytes of documents at most."""

    seconds: float
    octets: int


class Catalogue:
    """What is kept of all sessions."""

    def __init__(
        self,
        bucket: Bucket,
        sessions: Sessions,
        in_use: Callable[[], Iterable[str]],
        retention: Retention,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`in_use` names the sessions of all nodes with a lease, live or just run out."""
        self._bucket = bucket
        self._sessions = sessions
        self._in_use = in_use
        self._retention = retention
        self._clock = clock
        self._kept: dict[str, Summary] = {}
        self.synchronised = asyncio.Event()

    def all(self) -> list[Summary]:
        """Every session that is kept, the newest first."""
        return sorted(self._kept.values(), key=newest_first)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._kept

    async def follow(self) -> None:
        """Follow the store for ever."""
        await for_ever(self._follow_once)

    async def tidy(self) -> None:
        """Let go of what is old, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self.let_go()
            except StoreUnavailable as error:
                log.warning("old sessions stay", reason=error.reason)

    async def let_go(self) -> None:
        """Remove the sessions that are too old, and the oldest beyond what may be kept; never one that is in use.

        Raises `StoreUnavailable`.
        """
        for summary in self._overdue():
            await self._sessions.forget(summary)
            self._kept.pop(summary.session_id, None)
            log.info("session let go", session=summary.session_id, node=summary.spiffe_id)

    def _overdue(self) -> list[Summary]:
        now, in_use = self._clock(), set(self._in_use())
        # One that has not ended may be of a node that is just being listed.
        ended = [
            summary for summary in self._kept.values() if summary.expires_at <= now and summary.session_id not in in_use
        ]
        excess = sum(summary.octets for summary in self._kept.values()) - self._retention.octets
        overdue = []
        for summary in sorted(ended, key=lambda summary: summary.expires_at):
            if excess > 0 or summary.expires_at <= now - self._retention.seconds:
                overdue.append(summary)
                excess -= summary.octets
        if excess > 0:
            log.warning("the sessions of live nodes take more than may be kept", octets_beyond=excess)
        return overdue

    async def _follow_once(self) -> None:
        kept: dict[str, Summary] = {}
        async with aclosing(entries(self._bucket, f"{SUMMARY_PREFIX}>")) as stored:
            async for entry in stored:
                match entry:
                    case Entry(key, value, _):
                        _take(kept, key.removeprefix(SUMMARY_PREFIX), value)
                    case Whole():
                        self._kept = kept
                        self.synchronised.set()
                    case Quiet():
                        continue


def newest_first(summary: Summary) -> tuple[int, str]:
    return -summary.established_at, summary.session_id


def _take(kept: dict[str, Summary], session_id: str, value: bytes | None) -> None:
    kept.pop(session_id, None)
    if value is None:
        return
    try:
        if not _ID.fullmatch(session_id):
            raise SummaryMalformed("its key names no session")
        kept[session_id] = decode_summary(session_id, value)
    except SummaryMalformed as error:
        log.error("a stored summary is passed over", session=session_id[:64], detail=str(error))
