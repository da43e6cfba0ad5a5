"""Time and disks of processes that are simulated in one: seconds pass only when nobody has anything left to do."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class NobodyActs(Exception):
    """Everyone waits for somebody, for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to whatever is due next."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Jumping(self._pass))

    def time(self) -> float:
        return self._now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for no thread: there are none, and one that ends them comes back in a time that is not virtual."""

    def _pass(self, seconds: float | None) -> None:
        if seconds is None:
            raise NobodyActs
        self._now += seconds


class _Jumping(selectors.DefaultSelector):
    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0:
            self._jump(timeout)
        return ready


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_default_executor(AtOnce())
        return runner.run(main)


class AtOnce(ThreadPoolExecutor):
    """Does on the loop what would be done in threads."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        _do(future, lambda: fn(*args, **kwargs))
        return future


class Dying(BaseException):
    """The process ends in the middle of what it does."""


class Disk(ThreadPoolExecutor):
    """The one thread that writes, of a process that can die: one thing after the other, each taking some time."""

    def __init__(self, chance: random.Random, died: Callable[[], None], slow_seconds: tuple[float, float]) -> None:
        """`slow_seconds` are the least and the most that anything takes while the disk is slow."""
        super().__init__(1)
        self.slow = False
        self._slow_seconds = slow_seconds
        self._chance = chance
        self._died = died
        self._dead = False
        self._waiting: deque[Callable[[], None]] = deque()

    def die(self) -> None:
        """Nothing that waits is ever done."""
        self._dead = True
        self._waiting.clear()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        if not self._dead:
            self._waiting.append(lambda: _do(future, lambda: fn(*args, **kwargs)))
            if len(self._waiting) == 1:
                self._schedule()
        return future

    def _schedule(self) -> None:
        quick = (0.0, 0.001, 0.01)
        seconds = self._chance.uniform(*self._slow_seconds) if self.slow else self._chance.choice(quick)
        asyncio.get_running_loop().call_later(seconds, self._next)

    def _next(self) -> None:
        if self._dead:
            return
        try:
            self._waiting[0]()
        except Dying:
            self._died()
            return
        self._waiting.popleft()
        if self._waiting:
            self._schedule()


def _do(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - as an executor does: whoever waits gets it
        future.set_exception(error)
