"""Responsible for a request as every face brings it: its parts as plain values, its body once it is asked for.

Whoever answers knows no protocol, so a request means the same by whichever way it came.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass

from services.router.errors import InvalidRequest


class Fields:
    """Names with their values, in the order in which they came."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a name."""
        return tuple(self._values.get(name, ()))

    def first(self, name: str) -> str | None:
        """Return the first value of a name on which nothing rests."""
        values = self._values.get(name)
        return None if values is None else values[0]

    def only(self, name: str) -> str | None:
        """Return the value of a name, None without one. Raises `InvalidRequest` if there are several: of two, somebody
        on the way may have read the other one.
        """
        values = self.all(name)
        if len(values) > 1:
            raise InvalidRequest(f"{name} is given more than once")
        return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. Nothing of it was judged yet, beyond that it can be read as one."""

    method: str
    path: str
    """As it came, percent-encoded."""
    query: Fields
    headers: Fields
    """Their names in lower case."""
    read: Callable[[int, str], Awaitable[bytes]]
    """Reads the whole body, as it came over the wire, up to this many bytes, for the tenant of this id; a client that
    waits for leave to send it gets that now. Raises `RequestTooLarge`, `BodiesBusy`, or `InvalidRequest` where it
    cannot be read to its end.
    """
    gone: Callable[[], bool]
    """Whether the client has left. Whatever is cancelled while it has not, this router cancelled."""
    stalled: Callable[[], bool] = lambda: False
    """Whether the client is there and takes nothing of what is written to it."""
    connection: Hashable = None
    """What it came over: the same for all that came over it, another for everybody else."""
    keep: Callable[[], None] = lambda: None
    """To be called once it is known whose it is: its connection gives way to no other any more."""
    host: str = ""
    """Whom the client says it talks to: a name or address in lower case, without a port; empty if it does not."""
    served: frozenset[str] | None = None
    """The hosts that the connection's certificate is for, where it may serve no others."""
