from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console

from services.cli.local.display import Display


@dataclass
class Service:
    state: str
    pid: int | None = 7
    restarts: int = 0
    status: str = ""


def test_without_a_terminal_each_change_is_one_line() -> None:
    output = io.StringIO()
    rows = {"kms": Service("starting"), "node": Service("starting", pid=None)}
    display = Display(Console(file=output), lambda: rows)
    with display.showing():
        display.tick()
        display.tick()
        rows["kms"].state = "ready"
        display.tick()
    lines = [line.split("] ", 1)[1] for line in output.getvalue().splitlines()]
    assert lines == ["kms: starting (pid 7)", "node: starting", "kms: ready (pid 7)"]


def test_a_terminal_shows_the_table_and_lends_the_screen() -> None:
    output = io.StringIO()
    rows = {"kms": Service("ready", status="[bold]not markup")}
    console = Console(file=output, force_terminal=True, width=100)
    display = Display(console, lambda: rows)
    with display.showing():
        display.tick()
        with display.paused():
            console.print("somebody else's words")
    assert "kms" in output.getvalue()
    assert "[bold]not markup" in output.getvalue()
    assert "somebody else's words" in output.getvalue()
