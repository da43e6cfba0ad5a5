from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from libs.errors import MeshError
from services.cli.local import down, reset
from services.cli.local.down import MeshNotStopped, stop
from services.cli.local.reset import ResetNotConfirmed
from services.cli.mesh.layout import Layout, StateUnusable
from services.cli.mesh.lock import MeshRunning, holding

ROOT = Path(__file__).parents[4]
_STANDS_IN_FOR_UP = """
import signal, sys
from pathlib import Path
from services.cli.mesh.lock import holding
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    return layout


def run(command: str, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    down.add_parser(subparsers)
    reset.add_parser(subparsers)
    args = parser.parse_args([command, *arguments])
    code: int = args.run(args)
    return code


def test_down_ends_who_holds_the_state_and_waits_for_it(layout: Layout) -> None:
    command = [sys.executable, "-c", _STANDS_IN_FOR_UP, str(layout.lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert stop(layout, 30)
        assert holder.wait(10) == 0


def test_down_without_a_mesh_says_so(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("down", "--state", str(layout.root)) == 0
    assert "no mesh runs" in capsys.readouterr().out


def test_down_never_signals_a_process_that_does_not_hold_the_lock(layout: Layout) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger,
        holding(layout.lock),
    ):
        layout.lock.write_text(f"{stranger.pid}\n")
        with pytest.raises(MeshNotStopped) as refusal:
            stop(layout, 0)
        assert stranger.poll() is None
    assert refusal.value.reason == "MESH_NOT_STOPPED"


def test_reset_removes_everything_when_told_to(layout: Layout) -> None:
    assert run("reset", "--state", str(layout.root), "--yes") == 0
    assert not layout.root.exists()
    assert run("reset", "--state", str(layout.root), "--yes") == 0


@pytest.mark.parametrize(("held", "yes", "error"), [(True, True, MeshRunning), (False, False, ResetNotConfirmed)])
def test_reset_removes_nothing_otherwise(layout: Layout, held: bool, yes: bool, error: type[MeshError]) -> None:
    arguments = ["--state", str(layout.root), *(["--yes"] if yes else [])]
    if held:
        with holding(layout.lock), pytest.raises(error):
            run("reset", *arguments)
    else:
        with pytest.raises(error):
            run("reset", *arguments)
    assert layout.exists


def test_reset_touches_no_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(StateUnusable):
        run("reset", "--state", str(tmp_path), "--yes")
    assert (tmp_path / "thesis.tex").exists()
