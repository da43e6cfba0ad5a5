"""It is responsible for one request from first to last byte: judge, choose, forward, withhold, and its release.

It yields what the client gets; HTTP and gRPC only write it down. Whatever happens, a request that `run` was given ends
in one receipt, or in a number of its tenant's usage: answers, refusals, a node that breaks off, a client that leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import structlog

from libs.aci.endpoints import JSON
from libs.aci.json_values import most_values
from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.document import Policy
from libs.policy.tenant_record import SCOPE_OF_PATH
from services.router import prompt as prompts
from services.router.admission.limits import Gates, TenantLimited
from services.router.admission.quotas import Quotas
from services.router.admission.tenants import Tenant
from services.router.admission.usage import PROMPT_ABANDONED, Usage
from services.router.e2ee import answers as covers
from services.router.e2ee.opening import Opening
from services.router.errors import (
    KeysetEnded,
    ModelNotFound,
    RouterError,
    ServiceUnavailable,
    TenantRevoked,
    UpstreamFailed,
    UpstreamVerificationFailed,
)
from services.router.exchange.course import ANSWER_MARGIN_SECONDS, Course, Part, Request, Started
from services.router.exchange.ends import End
from services.router.exchange.passing import Passing
from services.router.exchange.release import Release, end_of
from services.router.exchange.volume import Volume
from services.router.exchange.withholding import withhold
from services.router.metrics import Metrics
from services.router.prompt import Prompt
from services.router.proof.issuance import Issuance
from services.router.reading import Reading
from services.router.routing.hop import Begun, Ended, Errand, NodeUnavailable, Reached
from services.router.routing.preference import NodesFull
from services.router.routing.routes import Route, Routes
from services.router.workload.generation import Generation
from services.router.workload.settings import SETTLING_SECONDS
from services.router.workload.workload import Workload

_ATTEMPTS = 3
_SUCCESS = 200

log = structlog.get_logger()


class Exchanges:
    """Runs exchanges."""

    def __init__(
        self,
        policy: PolicyKeeper,
        workload: Workload,
        opening: Opening,
        reading: Reading,
        routes: Routes,
        issuance: Issuance,
        ledger_seconds: float,
        metrics: Metrics,
        gates: Gates,
        usage: Usage,
        quotas: Quotas,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is in Unix seconds."""
        self._policy = policy
        self._workload = workload
        self._clock = clock
        self._opening = opening
        self._reading = reading
        self._routes = routes
        self._issuance = issuance
        self._ledger_seconds = ledger_seconds
        self._metrics = metrics
        self._gates = gates
        self._usage = usage
        self._quotas = quotas
        self._release = Release(issuance, ledger_seconds, metrics)

    async def run(self, request: Request) -> AsyncGenerator[Part, None]:
        """Yield `Started`, then the body. Close it (`aclosing`) when the client leaves.

        Whoever asks for the next part says that the one before is written: what was signed and not written is amended.
        Raises `KeysetEnded`, what keeps a receipt from being put off, and `TenantLimited` of a tenant that was refused
        too often for a receipt each, before anything was done with the request; everything else is a response with a
        receipt.
        """
        course = self._begun(request)
        ended = End.INTERNAL_ERROR
        try:
            with self._metrics.exchange(request.endpoint.path) as head:
                async with aclosing(self._parts(course)) as parts:
                    async for part in parts:
                        if isinstance(part, Started):
                            head(part.status)
                        yield part
        except (GeneratorExit, asyncio.CancelledError):
            ended = request.why()
            raise
        finally:
            if not course.recorded:
                self._release.record_later(course, ended, None if course.held is None else course.held.emitted_hash())
            for end in course.aborts:
                self._metrics.ends.add(end.value)
            self._count(course)

    def abandoned(self, tenant: Tenant) -> None:
        """Count a prompt of which nobody has read what it is: its client left first. Nothing was done for it, and a
        receipt each would let a tenant fill the log with beginnings.
        """
        self._metrics.refusals.add(PROMPT_ABANDONED)
        self._usage.refused_without_receipt(tenant, PROMPT_ABANDONED)

    def _begun(self, request: Request) -> Course:
        """Raises `KeysetEnded`: there is nothing to sign a receipt with, so it is counted."""
        try:
            generation = self._lasting(request, request.keyset_digest)
        except KeysetEnded as error:
            self._metrics.refusals.add(error.reason)
            self._usage.refused_without_receipt(request.tenant, error.reason)
            raise
        return Course.begin(request, self._policy.current, generation)

    def _count(self, course: Course) -> None:
        tenant = course.request.tenant
        if course.without_receipt is not None:
            self._usage.refused_without_receipt(tenant, course.without_receipt)
        elif course.model is None or not course.reached or course.refusal is not None:
            self._usage.refused(tenant)
        else:
            self._usage.answered(tenant, course.model, course.tokens)

    async def _parts(self, course: Course) -> AsyncGenerator[Part, None]:
        try:
            self._require_fresh()
            self._issuance.require_room(course.request.tenant)
            self._issuance.require_room_to_wait(course.request.tenant)
        except RouterError as error:
            # Nothing is judged under a policy that may be outdated, nor done for what could not be logged.
            if course.request.unread is not None:
                self._require_receipt(course, course.request.unread)
            self._metrics.refusals.add(error.reason)
            async with aclosing(self._release.refuse_unlogged(course, error)) as refusal:
                async for part in refusal:
                    yield part
            return
        try:
            request = course.request
            if request.unread is not None:
                raise request.unread
            request.tenant.require_scope(SCOPE_OF_PATH[request.endpoint.path])
            if request.sealing:
                opened = await self._opening.open(
                    request.tenant.tenant_id, self._spare(course), request.sealing, request.endpoint, request.body
                )
                course.opened(opened, self._lasting(request, opened.keyset_digest))
            prompt = await self._reading.request(
                request.tenant.tenant_id,
                most_values(course.body),
                self._spare(course),
                lambda: prompts.parse(course.body, request.endpoint),
            )
            course.model = prompt.model
            if not request.tenant.key.allows_model(prompt.model):
                raise ModelNotFound("no such model; GET /v1/models lists those served")
            with self._quotas.reserved(request.tenant, prompt, course.cost, course.came):
                async with aclosing(self._answer(course, prompt)) as answer:
                    async for part in answer:
                        yield part
        except RouterError as error:
            self._require_receipt(course, error)
            self._metrics.refusals.add(error.reason)
            async with aclosing(self._release.refuse(course, error)) as refusal:
                async for part in refusal:
                    yield part

    def _require_receipt(self, course: Course, error: RouterError) -> None:
        """Raise the error itself where it is a tenant's limits and has been too often: it is counted, and no more."""
        if isinstance(error, TenantLimited) and not self._gates.spares_receipt(course.request.tenant.tenant_id):
            self._metrics.refusals.add(error.reason)
            course.recorded, course.without_receipt = True, error.reason
            raise error

    async def _answer(self, course: Course, prompt: Prompt) -> AsyncGenerator[Part, None]:
        """Forward, and answer with what comes back. Raises `RouterError` while nothing has gone out: where somebody was
        handed the prompt, that they failed; where nobody was, why it may go nowhere.
        """
        tried: frozenset[str] = frozenset()
        failure: NodeUnavailable | None = None
        route = await self._turn(course, prompt, tried)
        while True:
            handed = len(course.reached)
            try:
                async with aclosing(self._relay(course, prompt, route)) as forwarded:
                    async for part in forwarded:
                        yield part
                return
            except NodeUnavailable as error:
                tried |= {route.name}
                log.warning("route unavailable", route=route.name, detail=str(error))
                if failure is None or not course.reached or len(course.reached) > handed:
                    failure = error
                if course.left() <= 0:
                    raise failure from None
                if len(tried) >= _ATTEMPTS:
                    raise self._given_up(course, prompt, tried, failure) from None
                try:
                    route = await self._turn(course, prompt, tried)
                except RouterError as refusal:
                    raise _telling(course, failure, refusal) from None

    def _given_up(self, course: Course, prompt: Prompt, tried: frozenset[str], failure: NodeUnavailable) -> RouterError:
        """Return why the prompt went nowhere after the last attempt. What keeps everybody else from it is said as after
        any other: where none is left of the sessions that it pins, that (ACI §5.3).
        """
        try:
            self._choose(course, prompt, tried)
        except RouterError as refusal:
            return _telling(course, failure, refusal)
        except NodesFull:
            pass
        return failure

    def _lasting(self, request: Request, named: str | None) -> Generation:
        """Return the keyset to serve under, which outlives the request. Raises `KeysetEnded`."""
        left = max(request.deadline - asyncio.get_running_loop().time(), 0.0)
        return self._workload.lasting(left + SETTLING_SECONDS, named)

    def _require_tenant(self, tenant: Tenant) -> None:
        """Operators may revoke a tenant whose answer is on its way. Raises `TenantRevoked`."""
        if tenant.tenant_id in self._policy.current.revoked.tenants:
            raise TenantRevoked("the tenant was revoked")

    def _require_fresh(self) -> Policy:
        """Raises `ServiceUnavailable`."""
        try:
            return self._policy.require_fresh()
        except MeshError as error:
            raise ServiceUnavailable(f"not now: {error.reason}") from error

    async def _turn(self, course: Course, prompt: Prompt, tried: frozenset[str]) -> Route:
        """Return where it goes, once there is room. It MUST be used before anything else is awaited."""
        request = course.request
        return await self._routes.turn(
            prompt,
            request.tenant.tenant_id,
            (request.endpoint.path, prompt.constraints, tried),
            lambda: self._choose(course, prompt, tried),
            self._spare(course),
        )

    def _spare(self, course: Course) -> float:
        """How much of the request's time is left, seconds, beside what its receipt and its answer take."""
        return course.left() - self._ledger_seconds - ANSWER_MARGIN_SECONDS

    def _choose(self, course: Course, prompt: Prompt, tried: frozenset[str]) -> Route:
        try:
            policy = self._require_fresh()
            self._require_tenant(course.request.tenant)
            if not tried:
                course.judge(policy, prompt.constraints)  # Whoever cannot be chosen is refused under it, too.
            # Nothing is awaited in between, so the choice is made under the same policy.
            route = self._routes.choose(prompt, course.request.endpoint, course.request.tenant.tenant_id, tried)
            course.judge(policy, prompt.constraints)
            return route
        except (RouterError, NodesFull):
            raise
        except MeshError as error:
            raise ServiceUnavailable(f"not now: {error.reason}") from error

    async def _relay(self, course: Course, prompt: Prompt, route: Route) -> AsyncGenerator[Part, None]:
        """One attempt at one route. Raises `NodeUnavailable` before the first byte."""
        request = course.request
        parts = route.forward(
            Errand(
                prompt=prompt,
                endpoint=request.endpoint,
                request_id=request.request_id,
                tenant_id=request.tenant.tenant_id,
                required=course.required,
                sealed=course.envelope is not None,
                timeout=max(self._spare(course), 0.1),
            )
        )
        async with aclosing(parts):
            # One that found its proof outdated verifies anew and is handed the prompt a second time.
            while isinstance(begun := await anext(parts), Reached):
                # It gets the prompt with the next step: whoever asks may have been revoked while it was reached.
                self._require_fresh()
                self._require_tenant(request.tenant)
                course.reached.append(begun)
                course.served_at = int(self._clock())
            if not isinstance(begun, Begun) or not course.reached:
                raise UpstreamFailed("the answer is out of order")
            held = course.held = withhold(
                request.endpoint, stream=prompt.stream, status=begun.status, content_type=begun.content_type
            )
            course.failed = begun.status != _SUCCESS
            streaming = held.streams
            volume = Volume()
            cover = covers.cover(course.envelope, streams=streaming, status=begun.status)
            started = course.head(begun.status, begun.content_type, sealed=cover.suite)
            if request.tenant.limits.has_quota and prompt.completions and not course.failed:
                course.volume = volume
            tenant_id = request.tenant.tenant_id
            passing = Passing(held, cover, volume, self._reading, tenant_id, lambda: self._spare(course))
            if streaming:
                yield started
            try:
                async for part in parts:
                    self._require_tenant(request.tenant)
                    if isinstance(part, Ended):
                        course.served, course.ended = part.served, True
                        if out := await passing.end():
                            yield out
                    elif isinstance(part, bytes) and (out := await passing.part(part)):
                        yield out
            except (UpstreamFailed, TenantRevoked) as error:
                end = end_of(error)
                course.aborts.append(end)
                course.failed |= end is End.UPSTREAM_FAILED
                held.fail(error)
                started = course.head(error.told(request.endpoint.protocol)[0], JSON, error=error)
        async with aclosing(self._release.release(course, held, started, streaming=streaming)) as released:
            async for last in released:
                yield last


def _telling(course: Course, failure: NodeUnavailable, refusal: RouterError) -> RouterError:
    """Return which of the two is said. Where somebody was handed the prompt: that they failed. Else what says why it
    went nowhere: why who was chosen did not get it, or why nobody else may. That nobody else is left says the less.
    """
    return failure if course.reached or refusal.type == UpstreamVerificationFailed.type else refusal
