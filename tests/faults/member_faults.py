"""Faults of a log's members and of its witness, one at a time."""

from __future__ import annotations

import asyncio
import random
import resource
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence

from services.ledger.storage.damage import LogRolledBack
from services.ledger.storage.segment_files import SEGMENTS
from tests.fakes.running_witness import RunningWitness
from tests.unit.services.ledger.live_group import LiveGroup

_LONGEST_LAG_SECONDS = 3.0
_FROM_THE_END = 40
"""So far before the end of the last frame there is its hash."""


class Faults:
    """What is done to a group, and what must come of it."""

    def __init__(self, live: LiveGroup, witness: RunningWitness, chance: random.Random) -> None:
        self._live = live
        self._witness = witness
        self._observer = live.member
        self._chance = chance

    @property
    def all(self) -> Sequence[Callable[[], Awaitable[str]]]:
        return (
            self.kill_writer,
            self.stop_writer,
            self.isolate_writer,
            self.kill_follower,
            self.stop_follower,
            self.isolate_follower,
            self.fill_follower,
            self.damage_follower,
            self.kill_witness,
        )

    async def kill_writer(self) -> str:
        writer, epoch = await self._writer()
        await self._live.kill_member(writer)
        await self._live.writer(self._observer, above_epoch=epoch)
        await self._live.processes[writer].start()
        return "writer killed"

    async def stop_writer(self) -> str:
        """It stands still, and goes on once another writes: then it knows nothing of that."""
        writer, epoch = await self._writer()
        self._live.processes[writer].send(signal.SIGSTOP)
        await self._live.writer(self._observer, above_epoch=epoch)
        self._live.processes[writer].send(signal.SIGCONT)
        await self._live.start_anew(writer)
        return "writer stopped"

    async def isolate_writer(self) -> str:
        writer, epoch = await self._writer()
        self._live.isolate(writer)
        await self._live.writer(self._observer, above_epoch=epoch)
        await self._live.start_anew(writer)
        self._live.mend()
        return "writer cut off"

    async def kill_follower(self) -> str:
        follower = await self._follower()
        await self._live.kill_member(follower)
        await self._live.processes[follower].start()
        return "follower killed"

    async def stop_follower(self) -> str:
        """It stands still, falls behind, and goes on."""
        follower = await self._follower()
        self._live.processes[follower].send(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0, _LONGEST_LAG_SECONDS))
        self._live.processes[follower].send(signal.SIGCONT)
        return "follower stopped"

    async def isolate_follower(self) -> str:
        self._live.isolate(await self._follower())
        await asyncio.sleep(self._chance.uniform(0, _LONGEST_LAG_SECONDS))
        self._live.mend()
        return "follower cut off"

    async def fill_follower(self) -> str:
        """Its disk takes nothing more: it ends, and catches up when it is started with room."""
        process = self._live.processes[await self._follower()]
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
        await process.ended()
        await process.start()
        return "follower full"

    async def damage_follower(self) -> str:
        """A bit of its last frame changes: it does not start, and gets everything from the others on an empty disk."""
        follower = await self._follower()
        process, place = self._live.processes[follower], self._live.places[follower]
        await self._live.kill_member(follower)
        segment = max((place.data_dir / SEGMENTS).iterdir())
        data = bytearray(segment.read_bytes())
        data[len(data.rstrip(b"\0")) - _FROM_THE_END] ^= 1
        segment.write_bytes(data)
        await process.start(ready=False)
        code, said = await process.ended()
        assert code == LogRolledBack.exit_status, said
        await asyncio.to_thread(shutil.rmtree, place.data_dir)
        await process.start()
        return "follower damaged"

    async def kill_witness(self) -> str:
        """The log goes on; what it remembers is what it cosigned."""
        await self._witness.kill()
        await asyncio.sleep(self._chance.uniform(0, _LONGEST_LAG_SECONDS))
        await self._witness.start()
        return "witness killed"

    async def _follower(self) -> str:
        writer, _ = await self._writer()
        return self._chance.choice([name for name in self._live.names if name != writer])

    async def _writer(self) -> tuple[str, int]:
        writer = await self._live.writer(self._observer)
        standing = await self._live.standing(self._observer, writer)
        return writer, 0 if standing is None else standing.epoch
