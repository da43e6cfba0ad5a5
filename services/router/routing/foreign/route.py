"""It is responsible for the way of one prompt to a foreign provider, also to one that has changed since."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import structlog

from libs.aci.json_values import most_values
from services.router.errors import UpstreamFailed
from services.router.reading import Reading
from services.router.routing.foreign.adapter import ForeignNotVerified, ProofOutdated, Standing
from services.router.routing.foreign.known import TIMED_OUT, Known
from services.router.routing.foreign.selection import Wanted
from services.router.routing.hop import Errand, Reached, Step

_RENEWALS = 2
"""How often one request has its provider verified anew: once for another key, once for other sessions."""
_LEAST_SECONDS = 0.1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ForeignRoute:
    """The way to a foreign provider; see `services.router.routing.routes.Route`."""

    known: Known
    wanted: Wanted
    in_flight: Counter[str]
    reading: Reading

    @property
    def name(self) -> str:
        return self.known.name

    def held(self) -> AbstractContextManager[None]:
        """A provider has no number of places."""
        return nullcontext()

    async def forward(self, errand: Errand) -> AsyncGenerator[Step, None]:
        """Forward by what stands, or by what a new verification finds where the provider has changed since: if the
        request may go there then.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + errand.timeout
        renewals = 0
        self.in_flight[self.name] += 1
        try:
            while True:
                standing = await self.known.standing_for(self.wanted)
                try:
                    body = await self._addressed(standing, errand, deadline - loop.time())
                    errand = replace(errand, timeout=max(deadline - loop.time(), _LEAST_SECONDS))
                    async with aclosing(self._while_allowed(standing.forward(errand, body))) as steps:
                        async for step in steps:
                            if isinstance(step, Reached):
                                await self._require_standing(standing)
                            yield step
                    return
                except ProofOutdated as error:
                    log.info("foreign provider has changed", provider=self.name, detail=str(error))
                    renewals += 1
                    if renewals > _RENEWALS:
                        raise
                    await self._renew(standing, deadline - loop.time())
        finally:
            self.in_flight[self.name] -= 1

    async def _addressed(self, standing: Standing, errand: Errand, seconds: float) -> bytes:
        """Return the prompt as the provider is to get it, within so many seconds. Raises `BodiesBusy`, and what
        `Standing.address` raises.
        """
        values = most_values(errand.prompt.forwarded)
        return await self.reading.request(errand.tenant_id, values, seconds, partial(standing.address, errand))

    async def _require_standing(self, standing: Standing) -> None:
        """Connecting may have taken a while: what was connected to must still be what a prompt may go to."""
        if await self.known.standing_for(self.wanted) is not standing:
            raise ProofOutdated(f"{self.name} was verified anew meanwhile")

    async def _renew(self, outdated: Standing, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(seconds, _LEAST_SECONDS)):
                await self.known.renew(outdated)
        except TimeoutError as error:
            raise ForeignNotVerified(self.name, TIMED_OUT) from error

    async def _while_allowed(self, steps: AsyncGenerator[Step, None]) -> AsyncGenerator[Step, None]:
        """Pass on the steps until policy takes the provider away, however long it is silent then."""
        withdrawn = asyncio.create_task(self.known.withdrawn.wait())
        try:
            async with aclosing(steps):
                while True:
                    following = asyncio.create_task(anext(steps, None))
                    try:
                        await asyncio.wait({following, withdrawn}, return_when=asyncio.FIRST_COMPLETED)
                        if withdrawn.done():
                            raise UpstreamFailed(f"{self.name} may no longer serve: {self.known.refusal}")
                        step = following.result()
                    finally:
                        if not following.done():
                            following.cancel()
                            await asyncio.wait({following})
                    if step is None:
                        return
                    yield step
        finally:
            withdrawn.cancel()
