from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.cli.mesh.lock import MeshRunning, holding, is_held, open_holder

_HOLD = """
import sys
from pathlib import Path
from services.cli.mesh.lock import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).parents[4]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_second_holder_is_refused(path: Path) -> None:
    with holding(path), pytest.raises(MeshRunning) as refusal, holding(path):
        pass
    assert refusal.value.reason == "MESH_RUNNING"
    assert not is_held(path)


def test_asking_never_stands_in_the_way_of_a_holder_or_of_another_who_asks(path: Path) -> None:
    path.touch()
    answers: list[bool] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers.append(is_held(path))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        mine = [is_held(path) for _ in range(2000)]
        for _ in range(500):
            with holding(path):
                pass
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert answers
    assert not any(mine)


def test_nobody_holds_a_file_that_is_not_there(path: Path) -> None:
    assert not is_held(path)
    assert open_holder(path) is None


def test_the_holder_is_found_and_its_end_frees_the_lock(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        process = open_holder(path)
        assert process is not None
        os.close(process)
        holder.kill()
        holder.wait(10)
    assert not is_held(path)
    assert open_holder(path) is None


def test_a_recorded_process_that_does_not_hold_the_lock_is_not_believed(path: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger,
        holding(path),
    ):
        path.write_text(f"{stranger.pid}\n")
        assert open_holder(path) is None
        path.write_text("no number")
        assert open_holder(path) is None
