"""It is responsible for an operator's calls to a service of several instances, whichever of them answers.

They are asked in the order of mesh.json, each for an equal share of the time that is left, so that one which is silent
leaves enough for the others. What an instance answers counts, a refusal too; the next one is asked only after one that
is away or cannot do it now. That one may have done what was asked without being heard, so what is asked MUST be
harmless to do twice.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio

from libs.errors import MeshError
from libs.identity.instances import is_away
from libs.rpc.errors import RemoteRefused, remote_errors
from services.cli.mesh.service_access import ServiceAccess

T = TypeVar("T")

Ask = Callable[[grpc.aio.Channel, float], Awaitable[T]]
"""Asks over a connection, with the deadline of its calls in seconds."""


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances of one service, at least one, the preferred one first."""

    called: str
    """As people read it."""
    silence: type[MeshError]
    """What is raised when none answers in its share of the time."""
    members: tuple[ServiceAccess, ...]

    async def ask(self, ask: Ask[T], timeout_seconds: float) -> T:
        """Return what `ask` gets from one instance.

        All together take `timeout_seconds` at most. Raises what the service refuses with, and `silence`.
        """
        ends_at = asyncio.get_running_loop().time() + timeout_seconds
        errors: list[MeshError] = []
        for asked, instance in enumerate(self.members):
            left = max(ends_at - asyncio.get_running_loop().time(), 0.0)
            try:
                return await self._ask_one(instance, ask, left / (len(self.members) - asked))
            except MeshError as error:
                if not is_away(error):
                    raise
                errors.append(error)
                if instance is not self.members[-1]:
                    _say(f"no answer from {self.called} at {instance.target} ({error.reason}): asking the next one")
        raise _telling_most(errors)

    async def _ask_one(self, instance: ServiceAccess, ask: Ask[T], seconds: float) -> T:
        try:
            async with asyncio.timeout(seconds), instance.channel() as channel:
                with remote_errors():
                    return await ask(channel, seconds)
        except TimeoutError as error:
            raise self.silence(f"{self.called} at {instance.target} did not answer within {seconds:.1f} s") from error


def _telling_most(errors: Sequence[MeshError]) -> MeshError:
    """Return the first that an instance gave a reason for, or the first of all where none answered."""
    return next(
        (error for error in errors if isinstance(error, RemoteRefused) and error.reason != error.code), errors[0]
    )


def _say(text: str) -> None:
    sys.stderr.write(f"teemesh: {text}\n")
