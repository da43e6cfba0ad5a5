"""It is responsible for the end of an exchange: its receipt committed, then what was withheld given out, or an error.

Nothing that a receipt is about goes out before the ledger has that receipt.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import structlog

from libs.aci.encoding import digest
from libs.aci.endpoints import JSON
from libs.errors import MeshError
from services.router.errors import AnswerUndeliverable, LedgerUnavailable, RouterError, TenantRevoked, UpstreamFailed
from services.router.exchange.course import ANSWER_MARGIN_SECONDS, Course, Part, Started
from services.router.exchange.ends import End
from services.router.exchange.withholding import Withholding
from services.router.metrics import Metrics
from services.router.proof.issuance import Issuance, Logged

log = structlog.get_logger()


class Release:
    """Ends exchanges. `ledger_seconds` is how long the ledger may take to acknowledge."""

    def __init__(self, issuance: Issuance, ledger_seconds: float, metrics: Metrics) -> None:
        self._issuance = issuance
        self._ledger_seconds = ledger_seconds
        self._metrics = metrics

    async def release(
        self, course: Course, held: Withholding, started: Started, *, streaming: bool
    ) -> AsyncGenerator[Part, None]:
        """Commit the receipt and give out what was withheld, or the error in its place."""
        sorry = LedgerUnavailable("the ledger did not acknowledge this response's receipt, so it is not released")
        end = held.error_end(sorry)
        try:
            logged = await self._commit(course, held.body_hash, held.emitted_hash(end))
        except LedgerUnavailable as error:
            log.warning("response not released", receipt=course.receipt_id, detail=str(error))
            if not streaming:
                yield replace(course.head(sorry.status, JSON), length=len(end))
            yield end
            return
        async with aclosing(_give_out(logged, None if streaming else started, held.withheld)) as rest:
            async for part in rest:
                yield part

    async def refuse(self, course: Course, error: RouterError) -> AsyncGenerator[Part, None]:
        """Answer with an error, after its receipt."""
        course.refusal = error.why or error.reason.lower()
        if course.reached:
            course.aborts.append(end_of(error))
        protocol = course.request.endpoint.protocol
        status, body = error.told(protocol)
        sorry = LedgerUnavailable("the ledger did not acknowledge this refusal's receipt").told(protocol)
        try:
            logged = await self._commit(course, digest(body), digest(sorry[1]))
        except LedgerUnavailable:
            yield replace(course.head(sorry[0], JSON), length=len(sorry[1]))
            yield sorry[1]
            return
        head = course.head(status, JSON, error=error)
        async with aclosing(_give_out(logged, head, body)) as rest:
            async for part in rest:
                yield part

    async def refuse_unlogged(self, course: Course, error: RouterError) -> AsyncGenerator[Part, None]:
        """Answer with an error whose receipt waits here, durably, until it can be logged. Raises the error itself,
        before anything goes out, where nothing more may wait.
        """
        course.refusal = error.why or error.reason.lower()
        course.recorded = True
        status, body = error.told(course.request.endpoint.protocol)
        try:
            await self._issuance.put_off(course.draft(digest(body)))
        except MeshError as full:
            log.error("a refusal has no receipt", receipt=course.receipt_id, reason=full.reason)
            course.without_receipt = error.reason
            raise error from full
        yield replace(course.head(status, JSON, error=error), length=len(body))
        yield body

    async def _commit(self, course: Course, returned: str, otherwise: str) -> Logged:
        """Commit the receipt over `returned`, or one that says `otherwise`. Raises `LedgerUnavailable`."""
        try:
            vault = await self._issuance.vault(course.request.tenant)
            self._issuance.require_room(course.request.tenant)
        except MeshError as error:
            # Nothing is sealed yet, so the receipt itself can say what really goes out.
            self.record_later(course, End.LEDGER_UNAVAILABLE, otherwise)
            raise LedgerUnavailable(f"the receipt cannot be sealed now: {error.reason}") from error
        course.recorded = True  # From here on a receipt whose response does not go out is amended.
        try:
            with self._metrics.commit():
                return await self._issuance.commit(
                    course.draft(returned, vault.epoch),
                    vault,
                    otherwise=otherwise,
                    so_far=digest(b"") if course.held is None else course.held.emitted_hash(),
                    timeout=self._patience(course),
                )
        except LedgerUnavailable:
            raise
        except MeshError as error:
            # What is not in the log cannot be amended: another receipt has its place, and says what really goes out.
            log.error("a receipt was not taken", receipt=course.receipt_id, reason=error.reason)
            self.record_later(course, End.LEDGER_UNAVAILABLE, otherwise)
            raise LedgerUnavailable(f"the log does not take the receipt: {error.reason}") from error

    def record_later(self, course: Course, abort: End, emitted: str | None) -> None:
        """See to a receipt for which nobody waits: `emitted` is the hash of what went out, if anything did."""
        course.recorded = True
        course.aborts.append(abort)
        self._issuance.record_later(course.draft(emitted or digest(b"")))

    def _patience(self, course: Course) -> float:
        """How long to wait for the ledger: its share, or what is left less the time to answer."""
        return max(min(self._ledger_seconds, course.left() - ANSWER_MARGIN_SECONDS), 0.1)


def end_of(error: RouterError) -> End:
    """Return why an answer that failed with this ended."""
    if isinstance(error, TenantRevoked):
        return End.TENANT_REVOKED
    if isinstance(error, AnswerUndeliverable):
        return End.ANSWER_UNDELIVERABLE
    return End.DEADLINE_EXCEEDED if isinstance(error, UpstreamFailed) and error.late else End.UPSTREAM_FAILED


async def _give_out(logged: Logged, started: Started | None, rest: bytes) -> AsyncGenerator[Part, None]:
    """Yield what was withheld, under its head where that was, too; tell the log how far it came."""
    outcome = logged.withdrawn
    try:
        if started is not None:
            yield replace(started, length=len(rest))
        outcome = logged.uncertain
        yield rest
        outcome = logged.released
    finally:
        outcome()
