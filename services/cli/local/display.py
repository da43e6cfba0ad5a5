"""It is responsible for what a person sees of a running mesh: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_REFRESHES_PER_SECOND = 4
_STYLES = {"ready": "green", "starting": "yellow", "restarting": "red"}


class Row(Protocol):
    """One service as shown."""

    @property
    def state(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def restarts(self) -> int: ...

    @property
    def status(self) -> str: ...


class Display:
    """Shows the rows. On a terminal the table stays up to date by itself; elsewhere `tick` prints what changed."""

    def __init__(self, console: Console, rows: Callable[[], Mapping[str, Row]]) -> None:
        self._console = console
        self._rows = rows
        self._began = time.monotonic()
        self._shown: dict[str, str] = {}
        self._live: Live | None = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show until the block ends."""
        if not self._console.is_terminal:
            yield
            return
        with self._fresh_live() as self._live:
            yield
        self._live = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to somebody else for a while."""
        live = self._live
        if live is None:
            yield
            return
        live.stop()
        try:
            yield
        finally:
            live.start(refresh=True)

    def tick(self) -> None:
        """Print a line for each service whose state is another than before; nothing on a terminal."""
        if self._console.is_terminal:
            return
        for name, row in self._rows().items():
            if self._shown.get(name) != row.state:
                self._shown[name] = row.state
                self.say(f"{name}: {row.state}" + (f" (pid {row.pid})" if row.pid else ""))

    def say(self, text: str) -> None:
        """Print a line above the table."""
        seconds = time.monotonic() - self._began
        self._console.print(Text(f"[{seconds:6.1f} s] {text}"), soft_wrap=True)

    def write(self, text: str) -> None:
        """Print text as it is, above the table."""
        self._console.print(Text(text), soft_wrap=True)

    def _fresh_live(self) -> Live:
        return Live(console=self._console, refresh_per_second=_REFRESHES_PER_SECOND, get_renderable=self._table)

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold")
        for column in ("service", "state", "pid", "restarts", "status"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for name, row in self._rows().items():
            state = Text(row.state, style=_STYLES.get(row.state, ""))
            table.add_row(name, state, str(row.pid or "-"), str(row.restarts), Text(row.status))
        return table
