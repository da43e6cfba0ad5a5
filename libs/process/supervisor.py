"""It is responsible for keeping one child process running: start, log, restart with backoff, stop.

The child is tethered, so it never outlives this process, and leads its own process group, so that what it started ends
with it and a Ctrl-C at the terminal reaches only the supervisor, which then stops children in its own order.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from libs.errors import Code, MeshError
from libs.process.readiness import Readiness, listening
from libs.process.relay import Relay
from libs.process.tether import tethered

log = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_SOUND_LIFE_SECONDS = 10.0


class CannotStart(MeshError):
    """The operating system would not start the program, or its log cannot be written."""

    code = Code.UNAVAILABLE
    reason = "CANNOT_START"


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    `environment`: the child's whole environment; None: this process's. `log`: file that takes standard output and
    error, appended to; None: this process's own. `hushable`: what it writes passes through this process, which passes
    it on to its own standard error until `Supervisor.hush`; there is no `log` then. `notify`: path of the socket on
    which the child says that it is ready; None: nothing is asked. `grace_seconds`: from SIGTERM to SIGKILL. `restart`:
    whether an end that nobody asked for is followed by a new start. `memory_bytes` and `oom_score_adj`: see `tethered`.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    folder: Path | None = None
    log: Path | None = None
    hushable: bool = False
    notify: Path | None = None
    grace_seconds: float = 10.0
    restart: bool = True
    memory_bytes: int = 0
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How the child ended. `code` is negative for a signal."""

    name: str
    code: int
    lived_seconds: float
    asked: bool

    @property
    def line(self) -> str:
        """One line for people."""
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exited with status {self.code}"
        return f"{self.name} {how} after {self.lived_seconds:.1f} s"


class Backoff:
    """The pauses between restarts: doubling while the child dies young, from the start again once it lived."""

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE_SECONDS

    def after(self, lived_seconds: float) -> float:
        if lived_seconds >= _SOUND_LIFE_SECONDS:
            self._next = _FIRST_PAUSE_SECONDS
        pause = self._next
        self._next = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return pause


class Supervisor:
    """Keeps one program running. Made by `supervised`."""

    def __init__(
        self,
        program: Program,
        readiness: Readiness,
        on_exit: Callable[[Exit], None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._program = program
        self._readiness = readiness
        self._on_exit = on_exit
        self._sleep = sleep
        self._process: asyncio.subprocess.Process | None = None
        self._relay: Relay | None = None
        self._stopping = asyncio.Event()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The running child's, which is also its process group's."""
        return None if self._process is None else self._process.pid

    @property
    def ready(self) -> bool:
        return self._readiness.ready

    @property
    def status(self) -> str:
        """What the child says it is doing."""
        return self._readiness.status

    async def until_ready(self) -> None:
        """Wait until the child says that it is ready; only a program with `notify` ever does."""
        await self._readiness.until_ready()

    def hush(self) -> None:
        """Pass on nothing more that the running child writes, if it is `hushable`. Its next start is heard again."""
        if self._relay is not None:
            self._relay.hush()

    def kill(self) -> None:
        """Send SIGKILL to the child and its whole group. It is started again as after any other end."""
        if self._process is not None and self._process.returncode is None:
            _kill_group(self._process.pid)

    async def stop(self) -> None:
        """End the child: SIGTERM, and SIGKILL for its whole group after the grace. Nothing is restarted any more."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._program.grace_seconds):
                await process.wait()
        except TimeoutError:
            log.warning("killing a program that does not stop", program=self._program.name)
        _kill_group(process.pid)
        await process.wait()

    async def run(self) -> None:
        """Start and restart until stopped. Raises `CannotStart` when even the first start fails."""
        backoff = Backoff()
        while not self._stopping.is_set():
            began = time.monotonic()
            self._process = process = await self._start()
            try:
                if self._stopping.is_set():
                    process.terminate()  # Asked to stop while it was being started.
                code = await process.wait()
            finally:
                # Whatever it started in its group goes too, also when this task is cancelled.
                _kill_group(process.pid)
                if self._relay is not None:
                    await self._relay.close()
            self._process = None
            self._readiness.forget()
            ended = Exit(self._program.name, code, time.monotonic() - began, self._stopping.is_set())
            self._report(ended)
            if self._stopping.is_set() or not self._program.restart:
                return
            await self._sleep(backoff.after(ended.lived_seconds))
            self.restarts += 1

    def _report(self, ended: Exit) -> None:
        if ended.asked:
            log.info("program stopped", program=ended.name, status=ended.line)
        else:
            log.warning("program ended", program=ended.name, status=ended.line)
        self._on_exit(ended)

    async def _start(self) -> asyncio.subprocess.Process:
        program = self._program
        environment = dict(os.environ if program.environment is None else program.environment)
        environment.pop("NOTIFY_SOCKET", None)  # The supervisor's own: the child must not speak for it.
        if program.notify is not None:
            environment["NOTIFY_SOCKET"] = str(program.notify)
        try:
            async with AsyncExitStack() as files:
                output: BinaryIO | int | None = None
                if program.hushable:
                    self._relay, output = await files.enter_async_context(Relay.opened())
                if program.log is not None:
                    descriptor = os.open(program.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                    # No data passes here.
                    output = files.enter_context(open(descriptor, "ab"))  # noqa: ASYNC230, SIM115
                return await asyncio.create_subprocess_exec(
                    *tethered(program.argv, memory_bytes=program.memory_bytes, oom_score_adj=program.oom_score_adj),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=program.folder,
                    env=environment,
                    process_group=0,
                )
        except OSError as error:
            raise CannotStart(f"cannot start {program.name}: {error.strerror}") from error


@asynccontextmanager
async def supervised(
    program: Program,
    *,
    on_exit: Callable[[Exit], None] = lambda ended: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Supervisor]:
    """Keep `program` running inside the block, and stop it at its end. `on_exit` hears of every end."""
    with ExitStack() as sockets:
        readiness = Readiness() if program.notify is None else sockets.enter_context(listening(program.notify))
        supervisor = Supervisor(program, readiness, on_exit, sleep)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(supervisor.run())
            try:
                yield supervisor
            finally:
                await supervisor.stop()
                if supervisor.pid is None:
                    running.cancel()  # It only waits for its next start.


def _kill_group(leader: int) -> None:
    """End what is left of a child's group. Empty groups are usual: the child ended cleanly."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
