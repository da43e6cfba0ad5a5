"""It is responsible for GPUs that are no longer those that were judged: nothing is served on them until they are again.

A device that comes, goes or is exchanged, another driver, a reset that can be seen, a mode that may not serve, and a
look that fails are all the same: the service leaves the list, refuses what comes, and proves itself anew, by a new key
and new evidence. What runs is ended, too, unless nobody could tell what there is. Looks that find what the present
evidence is about change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.identity.gpu import GpuSource
from libs.identity.renewal import CaChanged, Identity

_RETRY_SECONDS = 2.0
_LONGEST_PERIOD_SECONDS = 60.0

log = structlog.get_logger()


class GpusNotJudged(MeshError):
    """This service's GPUs are not those of its evidence, or may not serve: they are to be judged first."""

    code = Code.UNAVAILABLE
    reason = "GPUS_NOT_JUDGED"


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """The TOML table [gpus]. It counts where policy requires a GPU of the role."""

    source: str = "guest"
    """"guest": dstack's guest agent has the GPUs answer. "nvidia": NVIDIA's libraries do, in a process of their own,
    which sees switches, modes and resets too; needs the extra `gpu`, and libnvidia-ml in the image."""
    look_seconds: float = 30.0
    """How often it is looked whether the GPUs are still those that were judged, seconds; 1 to 60."""

    def __post_init__(self) -> None:
        if self.source not in ("guest", "nvidia"):
            raise ValueError('source must be "guest" or "nvidia"')
        if not 1 <= self.look_seconds <= _LONGEST_PERIOD_SECONDS:
            raise ValueError(f"look_seconds must be 1 to {_LONGEST_PERIOD_SECONDS:g}")


class GpuStanding:
    """Whether work may run on this service's GPUs."""

    def __init__(self) -> None:
        self._judged, self._doubted = asyncio.Event(), asyncio.Event()
        self._judged.set()
        self._running: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()
        self.why = ""
        """The reason of the doubt."""
        self.outdated: frozenset[bytes] = frozenset()
        """SHA-256 of the keys whose evidence was doubted last: nobody may be shown them to be listed again."""

    @property
    def is_judged(self) -> bool:
        return self._judged.is_set()

    async def until_judged(self) -> None:
        await self._judged.wait()

    async def until_doubted(self) -> None:
        await self._doubted.wait()

    def doubt(self, why: str, keys: frozenset[bytes]) -> None:
        """Let nothing begin any more."""
        self.outdated = keys if self.is_judged else self.outdated | keys
        self.why = why
        self._judged.clear()
        self._doubted.set()

    def end_running(self) -> None:
        """End what runs: the devices are not those that it began on."""
        for task in self._running:
            self._ended.add(task)
            task.cancel()

    def settle(self) -> None:
        """Let work begin: what is there now was judged."""
        self._doubted.clear()
        self._judged.set()

    def lift(self) -> None:
        """Let work begin: nobody asks for GPUs, so no key is held against any."""
        self.outdated = frozenset()
        self.settle()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Run the current task on the GPUs. Raises `GpusNotJudged`, at once or when they turn out to be others."""
        task = asyncio.current_task()
        if not self.is_judged or task is None:
            raise self._refusal()
        self._running.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._ended:
                raise self._refusal() from None
            raise
        finally:
            self._running.discard(task)
            self._ended.discard(task)

    def _refusal(self) -> GpusNotJudged:
        return GpusNotJudged(f"the GPUs are judged again first: {self.why}")


class GpuWatch:
    """Looks at the GPUs again and again."""

    def __init__(
        self,
        identity: Identity,
        policy: PolicyKeeper,
        role: str,
        source: GpuSource,
        standing: GpuStanding,
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._role = role
        self._source = source
        self._standing = standing

    async def keep(self, look_seconds: float, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Look for as long as the service lives. Raises `CaChanged`, after which nobody would believe a new key."""
        again = _RETRY_SECONDS
        while True:
            await self.look()
            if self._standing.is_judged:
                again = _RETRY_SECONDS
                await sleep(look_seconds)
            else:
                await sleep(min(again, look_seconds))
                again *= 2

    async def look(self) -> None:
        """Look once. Where policy requires no GPU of the role there is nothing to doubt."""
        if not self._policy.current.rules(self._role).gpu_required:
            self._standing.lift()
            return
        try:
            if await self._source.observe() == self._identity.current.gpus:
                if self._standing.is_judged:
                    return
            elif self._standing.is_judged:
                self._doubt("GPU_CHANGED")
                self._standing.end_running()
            await self._identity.renew()
        except CaChanged:
            raise
        except MeshError as error:
            # What could not be seen may have been reset meanwhile, so that it is judged anew once it can be again.
            self._doubt(error.reason)
            if error.code is not Code.UNAVAILABLE:
                self._standing.end_running()
            return
        self._standing.settle()
        log.info("gpus judged again")

    def _doubt(self, why: str) -> None:
        if self._standing.is_judged or self._standing.why != why:
            log.warning("gpus doubted", reason=why)
        keys = frozenset(credential.certificate.spki_sha256 for credential in self._identity.held)
        self._standing.doubt(why, keys)
