"""It is responsible for the processes of a local mesh: started in order, kept alive, watched, stopped in reverse.

Every service is an OS process of its own with a guest agent socket of its own, as it would be in a CVM of its own. All
are tied to this process: they end with it, however it ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path

from libs.process import Exit, Program, Supervisor, supervised
from services.cli.mesh.layout import Layout
from services.cli.mesh.roster import SOURCE_ROOT, command

_GRACE_SECONDS = 20.0
"""From SIGTERM to SIGKILL: a draining service has its own, shorter limits."""

_TAIL_BYTES = 4096


class State(StrEnum):
    """What a service is doing, as far as its supervisor knows."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class Child:
    """One service and what became of its processes."""

    def __init__(self, name: str, log: Path, on_end: Callable[[str, str], None]) -> None:
        self.name = name
        self._log = log
        self._on_end = on_end
        self._last_words = ""
        self._stopped = False
        self._heard = _size(log)
        self._supervisor: Supervisor | None = None

    def supervised_by(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    @property
    def supervisor(self) -> Supervisor:
        if self._supervisor is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._supervisor

    @property
    def pid(self) -> int | None:
        return self.supervisor.pid

    @property
    def restarts(self) -> int:
        return self.supervisor.restarts

    @property
    def state(self) -> State:
        if self._stopped:
            return State.STOPPED
        if self.supervisor.ready:
            return State.READY
        return State.RESTARTING if self._last_words else State.STARTING

    @property
    def status(self) -> str:
        """What it says it is doing or, when it is not running well, what it said last."""
        if self.state is State.READY:
            return self.supervisor.status
        return self.supervisor.status or self._last_words

    async def until_ready(self) -> None:
        await self.supervisor.until_ready()

    def ended(self, exit_: Exit) -> None:
        """Hear from the supervisor that a process ended."""
        if exit_.asked:
            self._stopped = True
            return
        # Who was killed had no last words; the log's last line is then about something else.
        words = last_line(self._log, self._heard) if exit_.code >= 0 else ""
        self._heard = _size(self._log)
        self._last_words = words or exit_.line
        self._on_end(self.name, f"{exit_.line}: {words}" if words else exit_.line)


class Children:
    """All of them. They end, in reverse order, when `stack` is closed."""

    def __init__(self, layout: Layout, stack: AsyncExitStack, on_end: Callable[[str, str], None]) -> None:
        self._layout = layout
        self._stack = stack
        self._on_end = on_end
        self._children: dict[str, Child] = {}

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    @property
    def all(self) -> Mapping[str, Child]:
        """In the order of starting."""
        return self._children

    async def start(self, name: str) -> Child:
        """Start a service; it is there when it says so (`until_ready`). Raises `CannotStart`."""
        layout = self._layout
        child = Child(name, layout.log(name), self._on_end)
        program = Program(
            name=name,
            argv=command(name, layout.config(name)),
            folder=SOURCE_ROOT,
            log=layout.log(name),
            notify=layout.notify_socket(name),
            grace_seconds=_GRACE_SECONDS,
        )
        child.supervised_by(await self._stack.enter_async_context(supervised(program, on_exit=child.ended)))
        self._children[name] = child
        return child


def last_line(log: Path, after: int = 0) -> str:
    """Return the last line of a log beyond its first `after` bytes, by which a service explains its end, or nothing."""
    try:
        with log.open("rb") as file:
            file.seek(max(after, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
