"""It is responsible for which nodes are avoided for a while: those that have failed, or begun slowly, several times.

A breaker is this router's guess and a preference. It opens no way around a check, and where every node that may serve
is avoided, one of them serves all the same. What a client can bring about alone says nothing of a node: how long its
request takes is a failing of the node's only as long as no other tenant is served meanwhile, and where the answers that
failed were one tenant's alone, that tenant avoids the node, and nobody else: until it is served there itself, and with
no trace in what others' requests say of the node.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import structlog

from services.router.errors import UpstreamFailed
from services.router.metrics import Count
from services.router.routing.failures import Failures
from services.router.routing.hop import Begun, Reached, Step
from services.router.routing.settings import RoutingSettings

_SMOOTHING = 0.2
"""What the newest time to a first byte counts in a node's usual one."""
_TENANTS_TRYING = 2
"""How many must have tried an avoided node, and had an answer that failed, until everybody goes on avoiding it."""

log = structlog.get_logger()


class Cause(Enum):
    """Why a node is avoided. The values are labels of a metric."""

    ERRORS = "errors"
    LATENCY = "latency"
    ONE_TENANT = "one_tenant"
    """Answers failed, one tenant's alone; by that one."""


@dataclass(slots=True)
class _Served:
    """When the node last did well by a tenant, and when by any other than that one."""

    tenant_id: str = ""
    at: float = -math.inf
    others_at: float = -math.inf

    def note(self, tenant_id: str, now: float) -> None:
        if tenant_id != self.tenant_id:
            self.tenant_id, self.others_at = tenant_id, self.at
        self.at = now

    def another(self, tenant_id: str) -> float:
        """Return when it last did well by somebody other than this tenant."""
        return self.others_at if tenant_id == self.tenant_id else self.at


@dataclass(slots=True)
class _Breaker:
    """One node's. Without a cause it is closed."""

    cause: Cause | None = None
    """Why everybody avoids it."""
    until: float = 0.0
    apart: str | None = None
    """The one tenant that avoids it, whoever else does."""
    apart_until: float = 0.0
    times_apart: int = 0
    openings: int = 0
    failures: Failures = field(default_factory=Failures)
    slow: int = 0
    on_trial: bool = False
    """Whether the one request runs that was let through after the time was over."""
    usual: dict[str, float] = field(default_factory=dict)
    """By model the smoothed time to the first byte of a stream, seconds."""
    answered: _Served = field(default_factory=_Served)
    """When bytes of any answer came."""
    begun: _Served = field(default_factory=_Served)
    """When streams began that were not slow."""

    def is_avoided_by(self, tenant_id: str) -> bool:
        return self.cause is not None or tenant_id == self.apart

    def is_due(self, tenant_id: str, now: float) -> bool:
        """Say whether the time is over for which this tenant avoids it."""
        return (self.cause is None or now >= self.until) and (tenant_id != self.apart or now >= self.apart_until)


@dataclass(slots=True)
class Attempt:
    """One request at one node, as far as it has gone."""

    name: str
    model: str
    tenant_id: str
    streams: bool
    breaker: _Breaker
    openings: int
    """How often the breaker had opened when this began."""
    times_apart: int
    """How often some tenant had been set apart by then."""
    handed_at: float | None = None
    status: int | None = None
    answered: bool = False
    """Whether a byte of the body has come."""

    @property
    def is_apart(self) -> bool:
        """Whether whose it is avoids the node, whoever else does."""
        return self.tenant_id == self.breaker.apart


class Breakers:
    """The breakers of the nodes that are listed; `opened` counts those that are open, by cause."""

    def __init__(self, settings: RoutingSettings, opened: Count, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._opened = opened
        self._clock = clock
        self._breakers: dict[str, _Breaker] = {}
        for cause in Cause:
            opened.add(cause.value, 0)

    def admits(self, name: str, tenant_id: str) -> bool:
        """Say whether a node should be given a tenant's request: its breaker is closed, or is to be tried now."""
        breaker = self._breakers.get(name)
        if breaker is None or not breaker.is_avoided_by(tenant_id):
            return True
        return breaker.is_due(tenant_id, self._clock()) and not breaker.on_trial

    def know(self, name: str) -> None:
        """Have a breaker for a node that is listed now."""
        self._breakers.setdefault(name, _Breaker())

    def forget(self, name: str) -> None:
        """Forget a node that is not listed any more. What still runs there leaves no trace."""
        breaker = self._breakers.pop(name, None)
        if breaker is not None and breaker.cause is not None:
            self._opened.add(breaker.cause.value, -1)
        if breaker is not None and breaker.apart is not None:
            self._opened.add(Cause.ONE_TENANT.value, -1)

    @contextmanager
    def attempt(self, name: str, model: str, tenant_id: str, *, streams: bool) -> Iterator[Attempt]:
        """Watch one request at a node, whose steps are to be given to `note`. A client that leaves says nothing."""
        breaker = self._breakers.get(name) or _Breaker()
        is_due = breaker.is_avoided_by(tenant_id) and breaker.is_due(tenant_id, self._clock())
        trial = is_due and not breaker.on_trial
        attempt = Attempt(name, model, tenant_id, streams, breaker, breaker.openings, breaker.times_apart)
        breaker.on_trial = breaker.on_trial or trial
        try:
            yield attempt
        except UpstreamFailed as error:
            if not self._excused(attempt, error):
                self._failed(attempt)
            raise
        finally:
            if trial:
                breaker.on_trial = False

    def note(self, attempt: Attempt, step: Step) -> None:
        """Take note of the next step of an attempt."""
        if isinstance(step, Reached):
            attempt.handed_at = self._clock()
        elif isinstance(step, Begun):
            attempt.status = step.status
        elif isinstance(step, bytes):
            if not attempt.answered and attempt.status is not None and attempt.status < 400:
                self._timed(attempt)
            attempt.answered = True
            attempt.breaker.answered.note(attempt.tenant_id, self._clock())
        elif attempt.status is not None:
            # What the client asked for wrongly, the node may have refused before it asked its engine.
            if attempt.status >= 500:
                self._answered_with_failure(attempt)
            elif attempt.status < 400:
                self._succeeded(attempt)

    def _excused(self, attempt: Attempt, error: UpstreamFailed) -> bool:
        """A client's own short time is no failing of the node's; a long silence is, if others hear no more from it."""
        if error.excused or attempt.handed_at is None:
            return error.excused or error.late
        if attempt.answered or self._clock() - attempt.handed_at < self._settings.first_byte_seconds:
            return error.late
        return attempt.breaker.answered.another(attempt.tenant_id) >= attempt.handed_at

    def _timed(self, attempt: Attempt) -> None:
        """The first byte has come. That of a buffered answer tells how long the answer is, and nothing of the node."""
        breaker, settings = attempt.breaker, self._settings
        if not attempt.streams or attempt.handed_at is None or _is_stale(attempt):
            return
        seconds = self._clock() - attempt.handed_at
        usual = breaker.usual.get(attempt.model, seconds)
        breaker.usual[attempt.model] = usual + _SMOOTHING * (seconds - usual)
        if seconds <= settings.slow_seconds or not self._is_far_above_others(attempt, seconds):
            breaker.slow = 0
            breaker.begun.note(attempt.tenant_id, self._clock())
            return
        if breaker.begun.another(attempt.tenant_id) >= attempt.handed_at:
            return  # Its prompt may be a long one: another's stream began in time meanwhile.
        breaker.slow += 1
        if breaker.slow >= settings.breaker_failures or breaker.cause is Cause.LATENCY:
            self._open(attempt, Cause.LATENCY)

    def _is_far_above_others(self, attempt: Attempt, seconds: float) -> bool:
        """Where all are slow, none is: with the usual time of the others, of which there have to be some."""
        usual = (each.usual.get(attempt.model) for each in self._breakers.values() if each is not attempt.breaker)
        others = [time for time in usual if time is not None]
        return bool(others) and seconds > self._settings.slow_factor * statistics.median(others)

    def _failed(self, attempt: Attempt) -> None:
        breaker = attempt.breaker
        if _is_stale(attempt):
            return
        breaker.failures.count()
        if breaker.cause is not None or breaker.failures.are_the_nodes(self._settings.breaker_failures):
            self._open(attempt, Cause.ERRORS)

    def _answered_with_failure(self, attempt: Attempt) -> None:
        breaker, failures = attempt.breaker, attempt.breaker.failures
        if _is_stale(attempt) or _is_from_before_apart(attempt):
            return
        failures.count_answer(attempt.tenant_id)
        is_open, enough = breaker.cause is not None, self._settings.breaker_failures
        if failures.are_the_nodes(_TENANTS_TRYING if is_open else enough):
            self._open(attempt, Cause.ERRORS)
        elif is_open or attempt.is_apart or failures.answers_of(attempt.tenant_id) >= enough:
            self._set_apart(attempt)

    def _succeeded(self, attempt: Attempt) -> None:
        breaker = attempt.breaker
        if _is_stale(attempt) or _is_from_before_apart(attempt):
            return
        breaker.failures.forget()
        if attempt.is_apart:
            self._rejoin(attempt)
        if breaker.cause is not None:
            self._count(attempt, breaker.cause, -1)
            breaker.cause, breaker.slow = None, 0
            log.info("node is used again", node=attempt.name)

    def _open(self, attempt: Attempt, cause: Cause) -> None:
        breaker = attempt.breaker
        if breaker.cause is not cause:
            if breaker.cause is not None:
                self._count(attempt, breaker.cause, -1)
            self._count(attempt, cause, 1)
            log.warning("node is avoided", node=attempt.name, cause=cause.value, seconds=self._settings.breaker_seconds)
        self._rejoin(attempt)
        breaker.failures.forget()
        breaker.cause = cause
        breaker.openings += 1
        breaker.until = self._clock() + self._settings.breaker_seconds

    def _set_apart(self, attempt: Attempt) -> None:
        breaker = attempt.breaker
        if breaker.apart != attempt.tenant_id:
            self._rejoin(attempt)
            self._count(attempt, Cause.ONE_TENANT, 1)
            log.info("node is avoided by one tenant", node=attempt.name, thinned=True)
            breaker.apart = attempt.tenant_id
            breaker.times_apart += 1
        breaker.apart_until = self._clock() + self._settings.breaker_seconds

    def _rejoin(self, attempt: Attempt) -> None:
        if attempt.breaker.apart is not None:
            self._count(attempt, Cause.ONE_TENANT, -1)
            attempt.breaker.apart = None

    def _count(self, attempt: Attempt, cause: Cause, amount: int) -> None:
        if self._breakers.get(attempt.name) is attempt.breaker:
            self._opened.add(cause.value, amount)


def _is_stale(attempt: Attempt) -> bool:
    """What began before the breaker opened says nothing of the node since."""
    return attempt.openings != attempt.breaker.openings


def _is_from_before_apart(attempt: Attempt) -> bool:
    """What a tenant that is set apart asked before says nothing of how it is served since. Others' requests do."""
    return attempt.is_apart and attempt.times_apart != attempt.breaker.times_apart
