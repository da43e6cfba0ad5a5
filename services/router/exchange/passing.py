"""It is responsible for an answer on its way through: encrypted where it has to be, read for what it says, held back.

What takes long of that is done beside the event loop. Whatever is done there changes nothing that the exchange looks at
when its client leaves meanwhile: nothing has gone out, nothing is known and nothing is counted that was not by then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from libs.aci.json_values import FEW_VALUES, weight
from services.router.e2ee.answers import Cover
from services.router.exchange.volume import Volume
from services.router.exchange.withholding import BufferedResponse, Withholding
from services.router.reading import Reading

T = TypeVar("T")


class Passing:
    """One answer. `spare` is how many seconds it may wait for its turn to be read."""

    def __init__(
        self,
        held: Withholding,
        cover: Cover,
        volume: Volume,
        reading: Reading,
        tenant_id: str,
        spare: Callable[[], float],
    ) -> None:
        self._held = held
        self._cover = cover
        self._volume = volume
        self._reading = reading
        self._tenant_id = tenant_id
        self._spare = spare

    async def part(self, came: bytes) -> bytes:
        """Take the next bytes; return what may go out now. Raises `UpstreamFailed`."""
        if isinstance(self._held, BufferedResponse):
            self._volume.add(len(came))
        return await self._hold(await self._beside(self._cover.weight(came), partial(self._cover.feed, came)))

    async def end(self) -> bytes:
        """The answer is whole: return what else may go out before its receipt is logged. Raises `UpstreamFailed`."""
        out = await self._hold(await self._beside(self._cover.weight(), self._cover.finish))
        self._held.complete()
        if isinstance(self._held, BufferedResponse):
            self._held.said = await self._beside(self._held.weight, self._held.read)
        return out

    async def _hold(self, covered: bytes) -> bytes:
        held = self._held
        for octets in self._cover.told():
            self._volume.add_event(octets)
        if isinstance(held, BufferedResponse):
            held.feed(covered)
            return b""
        events = held.feed(covered)
        # Few bytes are few values, whatever they are.
        values = sum(map(len, events))
        values = values if values <= FEW_VALUES else sum(map(weight, events))
        notices = await self._beside(values, partial(held.read, events))
        if self._cover.suite is None:
            for said in notices:
                self._volume.add_event(said.octets)
        return held.release(events, notices)

    async def _beside(self, values: int, work: Callable[[], T]) -> T:
        return await self._reading.answer(self._tenant_id, values, self._spare(), work)
