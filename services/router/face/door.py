"""It is responsible for who comes in at the gRPC door, before anything that a call brings has been read: whose it is,
and a place among the calls that run.

Whoever has no key, or one that was not looked up in the last hour, is a visitor. Visitors have places of their own, so
whoever holds all of them keeps out no tenant that was seen in that hour: some to have a key looked up, others to ask
for what anybody may. They have them by connection, since behind a load balancer all have one address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from libs.errors import Code
from libs.rpc.bounds import MessageNotRead
from libs.rpc.calls import Call, Proceed
from services.router.admission.tenants import Tenant, Tenants
from services.router.admission.usage import Usage
from services.router.errors import InvalidRequest, RouterError
from services.router.face.arrivals import Fields
from services.router.face.credentials import authorization
from services.router.face.places import CallsBusy, Places
from services.router.metrics import Count

INFER = "/teemesh.inference.v1.InferenceService/Infer"
LIST_MODELS = "/teemesh.inference.v1.InferenceService/ListModels"
_OF_TENANTS = frozenset({INFER, LIST_MODELS})
"""What is for tenants alone. Who may read which document, its own answer says."""

VISIT_SECONDS = 30.0
"""How long a call that brings no prompt may take: to bring its message, to be answered, and to read the answer."""
_VISITORS_PART = 4
"""There are a quarter as many places for either kind of visitors as for tenants, and at least one."""

_admitted: ContextVar[Tenant] = ContextVar("teemesh_admitted")


class CallTooLong(RouterError):
    """A call that brings no prompt was not over in time: its client brings nothing, or does not read."""

    status = 408
    type = "request_timeout"
    code = Code.DEADLINE_EXCEEDED
    reason = "CALL_TOO_LONG"


def admitted() -> Tenant:
    """Return whose the running call is. MUST be asked in calls that are for tenants alone."""
    return _admitted.get()


def metadata(call: Any) -> Fields:
    """Return what a call shows beside its message, as over HTTPS."""
    return Fields((name, value) for name, value in call.invocation_metadata() or () if isinstance(value, str))


class Door:
    """Lets calls in, as middleware. `refused` is told the reason of each refusal before a key is looked up.

    What is refused of tenants' prompts is in their usage, and among `refusals`.
    """

    def __init__(
        self,
        tenants: Tenants,
        usage: Usage,
        refusals: Count,
        refused: Callable[[str], None],
        *,
        calls: int,
        visit_seconds: float = VISIT_SECONDS,
    ) -> None:
        self._tenants = tenants
        self._usage = usage
        self._refusals = refusals
        self._refused = refused
        self._places = Places(calls)
        self._visitors = Places(max(calls // _VISITORS_PART, 1))
        self._looked_up = Places(max(calls // _VISITORS_PART, 1))
        self._visit_seconds = visit_seconds

    async def middleware(self, call: Call, proceed: Proceed) -> Any:
        """Raises `Unauthorized` and what else a key is refused for, `CallsBusy`, `CallTooLong`."""
        given, connection = metadata(call.context), call.context.peer()
        known = self._known(given)
        if call.method not in _OF_TENANTS:
            with self._visit(self._visitors, connection) if known is None else self._places.taken(known):
                return await self._in_time(proceed)
        with self._room_to_look_up(given, known, connection):
            tenant = await self._tenants.authenticate(authorization(given), connection)
        _admitted.set(tenant)
        if call.method != INFER:
            with self._places.taken(tenant.tenant_id):
                return await self._in_time(proceed)
        try:
            with self._places.taken(tenant.tenant_id):
                return await proceed()
        except (CallsBusy, MessageNotRead) as error:
            # Nobody has read what was asked: there is nothing that a receipt could be about.
            self._refusals.add(error.reason)
            self._usage.refused_without_receipt(tenant, error.reason)
            raise

    async def _in_time(self, proceed: Proceed) -> Any:
        try:
            async with asyncio.timeout(self._visit_seconds) as patience:
                return await proceed()
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise CallTooLong(f"this call may take {self._visit_seconds:g} s") from error

    @contextmanager
    def _visit(self, places: Places, holder: str) -> Iterator[None]:
        try:
            with places.taken(holder):
                yield
        except CallsBusy as error:
            self._refused(error.reason)
            raise

    def _room_to_look_up(self, given: Fields, known: str | None, connection: str) -> AbstractContextManager[None]:
        if known is None:
            return self._visit(self._looked_up, connection)
        # The place is its tenant's own: strangers take none of these, and a slow registry is not asked without end.
        return self._visit(self._places, known) if self._tenants.needs_look_up(authorization(given)) else nullcontext()

    def _known(self, given: Fields) -> str | None:
        try:
            return self._tenants.remembered(authorization(given))
        except InvalidRequest:
            return None  # Whoever needs a key says what is wrong with it.
