"""It is responsible for one request from first to last byte: judge, choose, forward, withhold, sign, commit, release.

It yields what the client gets; HTTP and gRPC only write it down. Whatever happens, an authenticated request ends in one
receipt: answers, refusals, a node that breaks off, a client that leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from libs.aci.encoding import digest
from libs.aci.endpoints import Endpoint
from libs.aci.receipt import fresh_receipt_id
from libs.aci.receipt_events import (
    Aborted,
    KnownEvent,
    PolicyInForce,
    RequestForwarded,
    RequestReceived,
    ResponseReturned,
    SealedUnder,
)
from libs.aci.receipt_events import UpstreamFailed as NoUpstream
from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper
from services.router import prompt as prompts
from services.router.admission.tenants import Tenant
from services.router.errors import LedgerUnavailable, RouterError, ServiceUnavailable, TenantRevoked, UpstreamFailed
from services.router.exchange.ends import End, Why
from services.router.exchange.withholding import Withholding, withhold
from services.router.prompt import Prompt
from services.router.proof.issuance import Draft, Issuance, Logged
from services.router.routing.hop import Begun, Ended, Errand, NodeUnavailable, Reached
from services.router.routing.routes import Route, Routes

_ATTEMPTS = 3
_ANSWER_MARGIN_SECONDS = 1.0
_NO_MODEL = "none"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Request:
    """An authenticated request. `deadline` is in the event loop's time; `why` is asked if its reader stops."""

    endpoint: Endpoint
    body: bytes
    tenant: Tenant
    request_id: str
    deadline: float
    why: Why


@dataclass(frozen=True, slots=True)
class Started:
    """What the response is; bytes follow. For a buffered response everything is committed by now."""

    status: int
    content_type: str
    receipt_id: str


Part = Started | bytes


@dataclass(slots=True)
class _Course:
    """How one exchange has gone so far."""

    request: Request
    policy: PolicyInForce
    receipt_id: str = field(default_factory=fresh_receipt_id)
    model: str | None = None
    reached: list[Reached] = field(default_factory=list)
    """Who was handed the prompt, in order: an answer is the last one's."""
    held: Withholding | None = None
    served: KnownEvent | None = None
    refusal: str | None = None
    aborts: list[End] = field(default_factory=list)
    recorded: bool = False
    """True once somebody else sees to the receipt, whatever happens to this exchange."""

    def draft(self, returned: str, vault_epoch: int | None = None) -> Draft:
        """The receipt's content, in the order of ACI section 7.4. Without an epoch it is sealed later, in whichever."""
        events: list[KnownEvent] = [RequestReceived(digest(self.request.body)), self.policy]
        model = self.model or _NO_MODEL
        if self.reached:
            # A receipt has room for one: what the last was handed, whose answer it is.
            events.append(RequestForwarded(self.reached[-1].forwarded))
            events.extend(reached.outcome for reached in self.reached)
        else:
            events.append(NoUpstream(required=True, model_id=model, reason=self.refusal or "not_forwarded"))
        if self.served is not None:
            events.append(self.served)
        events.extend(Aborted(end.value) for end in self.aborts)
        if vault_epoch is not None:
            events.append(SealedUnder(vault_epoch))
        events.append(ResponseReturned(returned))
        return Draft(
            tenant=self.request.tenant,
            receipt_id=self.receipt_id,
            endpoint=self.request.endpoint.path,
            model=self.model,
            chat_id=None if self.held is None else self.held.chat_id,
            events=tuple(events),
        )


class Exchanges:
    """Runs exchanges."""

    def __init__(self, policy: PolicyKeeper, routes: Routes, issuance: Issuance, ledger_seconds: float) -> None:
        self._policy = policy
        self._routes = routes
        self._issuance = issuance
        self._ledger_seconds = ledger_seconds

    async def run(self, request: Request) -> AsyncGenerator[Part, None]:
        """Yield `Started`, then the body. Close it (`aclosing`) when the client leaves.

        Whoever asks for the next part says that the one before is written: what was signed and not written is amended.
        Raises `PolicyStale` or `LedgerUnavailable` before anything was done with the request; everything later is a
        response with a receipt.
        """
        policy = self._policy.require_fresh()
        self._issuance.require_room()
        course = _Course(request, PolicyInForce(policy.version, "sha256:" + policy.digest.hex()))
        ended = End.INTERNAL_ERROR
        try:
            async with aclosing(self._parts(course)) as parts:
                async for part in parts:
                    yield part
        except (GeneratorExit, asyncio.CancelledError):
            ended = request.why()
            raise
        finally:
            if not course.recorded:
                self._record_later(course, ended, None if course.held is None else course.held.emitted_hash())

    async def _parts(self, course: _Course) -> AsyncGenerator[Part, None]:
        try:
            prompt = prompts.parse(course.request.body)
            course.model = prompt.model
            async with aclosing(self._answer(course, prompt)) as answer:
                async for part in answer:
                    yield part
        except RouterError as error:
            async with aclosing(self._refuse(course, error)) as refusal:
                async for part in refusal:
                    yield part

    async def _answer(self, course: _Course, prompt: Prompt) -> AsyncGenerator[Part, None]:
        """Forward, and answer with what comes back. Raises `RouterError` while nothing has gone out."""
        tried: frozenset[str] = frozenset()
        route = self._choose(course, prompt, tried)
        while True:
            try:
                async with aclosing(self._relay(course, prompt, route)) as forwarded:
                    async for part in forwarded:
                        yield part
                return
            except NodeUnavailable as error:
                tried |= {route.name}
                log.warning("route unavailable", route=route.name, detail=str(error))
                if len(tried) >= _ATTEMPTS or self._left(course) <= 0:
                    raise
                try:
                    route = self._choose(course, prompt, tried)
                except RouterError:
                    raise error from None  # There was one; that it failed is what the client should know.

    def _require_tenant(self, tenant: Tenant) -> None:
        """Operators may revoke a tenant whose answer is on its way. Raises `TenantRevoked`."""
        if tenant.tenant_id in self._policy.current.revoked.tenants:
            raise TenantRevoked("the tenant was revoked")

    def _choose(self, course: _Course, prompt: Prompt, tried: frozenset[str]) -> Route:
        try:
            return self._routes.choose(prompt, course.request.tenant.tenant_id, tried)
        except RouterError:
            raise
        except MeshError as error:
            raise ServiceUnavailable(f"not now: {error.reason}") from error

    async def _relay(self, course: _Course, prompt: Prompt, route: Route) -> AsyncGenerator[Part, None]:
        """One attempt at one route. Raises `NodeUnavailable` before the first byte."""
        request = course.request
        parts = route.forward(
            Errand(
                prompt=prompt,
                endpoint=request.endpoint,
                request_id=request.request_id,
                tenant_id=request.tenant.tenant_id,
                timeout=max(self._left(course) - self._ledger_seconds - _ANSWER_MARGIN_SECONDS, 0.1),
            )
        )
        async with aclosing(parts):
            # One that found its proof outdated verifies anew and is handed the prompt a second time.
            while isinstance(begun := await anext(parts), Reached):
                course.reached.append(begun)
            if not isinstance(begun, Begun) or not course.reached:
                raise UpstreamFailed("the answer is out of order")
            held = course.held = withhold(
                request.endpoint, stream=prompt.stream, status=begun.status, content_type=begun.content_type
            )
            started = Started(begun.status, begun.content_type, course.receipt_id)
            streaming = held.streams
            if streaming:
                yield started
            try:
                async for part in parts:
                    self._require_tenant(request.tenant)
                    if isinstance(part, Ended):
                        course.served = part.served
                        held.complete()
                    elif isinstance(part, bytes) and (out := held.feed(part)):
                        yield out
            except (UpstreamFailed, TenantRevoked) as error:
                course.aborts.append(_end_of(error))
                held.fail(error)
                started = Started(error.status, "application/json", course.receipt_id)
        async with aclosing(self._release(course, held, started, streaming=streaming)) as released:
            async for end in released:
                yield end

    async def _release(
        self, course: _Course, held: Withholding, started: Started, *, streaming: bool
    ) -> AsyncGenerator[Part, None]:
        """Commit the receipt and give out what was withheld, or the error in its place."""
        sorry = LedgerUnavailable("the ledger did not acknowledge this response's receipt, so it is not released")
        end = held.error_end(sorry)
        try:
            logged = await self._commit(course, held.body_hash, held.emitted_hash(end))
        except LedgerUnavailable as error:
            log.warning("response not released", receipt=course.receipt_id, detail=str(error))
            if not streaming:
                yield Started(sorry.status, "application/json", course.receipt_id)
            yield end
            return
        async with aclosing(_give_out(logged, None if streaming else started, held.withheld)) as rest:
            async for part in rest:
                yield part

    async def _refuse(self, course: _Course, error: RouterError) -> AsyncGenerator[Part, None]:
        """Answer with an error, after its receipt."""
        course.refusal = error.why or error.reason.lower()
        if course.reached:
            course.aborts.append(_end_of(error))
        body = error.body
        sorry = LedgerUnavailable("the ledger did not acknowledge this refusal's receipt")
        try:
            logged = await self._commit(course, digest(body), digest(sorry.body))
        except LedgerUnavailable:
            yield Started(sorry.status, "application/json", course.receipt_id)
            yield sorry.body
            return
        async with aclosing(
            _give_out(logged, Started(error.status, "application/json", course.receipt_id), body)
        ) as rest:
            async for part in rest:
                yield part

    async def _commit(self, course: _Course, returned: str, otherwise: str) -> Logged:
        """Commit the receipt over `returned`, or one that says `otherwise`. Raises `LedgerUnavailable`."""
        try:
            vault = await self._issuance.vault(course.request.tenant)
            self._issuance.require_room()
        except MeshError as error:
            # Nothing is sealed yet, so the receipt itself can say what really goes out.
            self._record_later(course, End.LEDGER_UNAVAILABLE, otherwise)
            raise LedgerUnavailable(f"the receipt cannot be sealed now: {error.reason}") from error
        course.recorded = True  # From here on a receipt whose response does not go out is amended.
        return await self._issuance.commit(
            course.draft(returned, vault.epoch),
            vault,
            otherwise=otherwise,
            so_far=digest(b"") if course.held is None else course.held.emitted_hash(),
            timeout=self._patience(course),
        )

    def _record_later(self, course: _Course, abort: End, emitted: str | None) -> None:
        course.recorded = True
        course.aborts.append(abort)
        self._issuance.record_later(course.draft(emitted or digest(b"")))

    def _left(self, course: _Course) -> float:
        return course.request.deadline - asyncio.get_running_loop().time()

    def _patience(self, course: _Course) -> float:
        """How long to wait for the ledger: its share, or what is left less the time to answer."""
        return max(min(self._ledger_seconds, self._left(course) - _ANSWER_MARGIN_SECONDS), 0.1)


def _end_of(error: RouterError) -> End:
    if isinstance(error, TenantRevoked):
        return End.TENANT_REVOKED
    return End.DEADLINE_EXCEEDED if isinstance(error, UpstreamFailed) and error.late else End.UPSTREAM_FAILED


async def _give_out(logged: Logged, started: Started | None, rest: bytes) -> AsyncGenerator[Part, None]:
    """Yield what was withheld, under its head where that was, too; tell the log how far it came."""
    outcome = logged.withdrawn
    try:
        if started is not None:
            yield started
        outcome = logged.uncertain
        yield rest
        outcome = logged.released
    finally:
        outcome()
