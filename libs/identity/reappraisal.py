"""It is responsible for judging everyone again when policy changes, without keeping anybody else waiting for it.

Whom the policy's revocations name ends at once, all of them before anyone is judged. The others are judged one after
the other, and between two of them the loop does what else there is to do. Nothing starts on an older judgement
meanwhile: whoever is used before their turn is judged on use. What already runs goes on until the turn comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol

from libs.identity.freshness import PolicyKeeper
from libs.policy.document import Policy


class Believed(Protocol):
    """Those whom one place believes."""

    def end_named(self) -> None:
        """End those whom revocations name, by what was found of them before. MUST be quick."""

    def judging(self) -> Iterator[None]:
        """Judge one with each step, until everybody was judged under the policy in force or refused."""


async def reappraise(policy: PolicyKeeper, everyone: Callable[[], Iterable[Believed]]) -> None:
    """Judge everyone again. When this returns they all are, under the policy that is in force then.

    A change meanwhile does not begin it anew, so that whoever's turn is last has one however often policy changes.
    """
    judged_under: Policy | None = None
    while judged_under is not policy.current:
        judged_under = ended_under = policy.current
        _end_named(everyone())
        for _ in chain.from_iterable(believed.judging() for believed in everyone()):
            await asyncio.sleep(0)
            if ended_under is not policy.current:
                ended_under = policy.current
                _end_named(everyone())


def _end_named(everyone: Iterable[Believed]) -> None:
    for believed in everyone:
        believed.end_named()
