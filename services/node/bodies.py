"""It is responsible for where a request body is read: what takes long beside the event loop, tenants in turn.

A tenant's bodies come through many routers, each of which takes turns by itself; here all of them meet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from libs.aci.endpoints import Endpoint
from libs.aci.error_bodies import error_body
from libs.aci.json_values import FEW_VALUES, most_values
from libs.errors import Code, MeshError
from libs.turns.line import Line
from services.node.asked import Asked, parse
from services.node.refused import BodyRefused, Refusal
from services.node.schemas import may_hold_schemas

T = TypeVar("T")


class BodyReadTooLate(MeshError):
    """The request's time was over before its body was read: those of other tenants came first."""

    code = Code.DEADLINE_EXCEEDED
    reason = "BODY_READ_TOO_LATE"


class Bodies:
    """Reads bodies. It ends with the object, as its threads do that nobody uses any more."""

    def __init__(self, read: partial[Asked]) -> None:
        """`read` is `asked.read_body` with what is the same for all bodies."""
        self._read = read
        self._large = Line("body-reading")
        # Most programs send tools. What those take is short beside what many values do, and does not wait for it.
        self._schemas = Line("schema-reading")

    async def read(self, tenant_id: str, body: bytes, endpoint: Endpoint, seconds: float) -> Asked | Refusal:
        """Return what a body asks there. Raises `BodyReadTooLate` where its turn does not come in so many seconds."""
        read, line = partial(self._read, body, endpoint=endpoint), self._large
        if most_values(body) <= FEW_VALUES:
            members = _or_refusal(partial(parse, body), endpoint)
            if isinstance(members, Refusal):
                return members
            read, line = partial(read, members=members), self._schemas
            if not may_hold_schemas(members):
                return _or_refusal(read, endpoint)
        try:
            return await line.read(tenant_id, seconds, partial(_or_refusal, read, endpoint))
        except TimeoutError as error:
            raise BodyReadTooLate("the request's time is over before its body could be read") from error


def _or_refusal(read: Callable[[], T], endpoint: Endpoint) -> T | Refusal:
    try:
        return read()
    except BodyRefused as refusal:
        # Not the error itself: its traceback holds all that was read, for as long as somebody holds the error.
        return Refusal(refusal.status, error_body(refusal.type, str(refusal), endpoint.protocol))
