"""What is left of a mesh that was killed whole, and what its folder gives again.

One mesh's story, told once: it answers and is killed, starts again and is stopped, has its log damaged and restored.
The tests come in that order. What each holds against a later life was written down before the death in question, and
every start is a new process over the folder alone: nothing but what is stored can make a later test pass.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.ledger.storage import frames, segments
from services.ledger.storage.segment_files import SEGMENTS
from tests.fakes.ports import free_port
from tests.faults.flipped import flipped, start_on_flipped
from tests.faults.load import Completion, Record, open_client
from tests.faults.proof import Prover
from tests.mesh.processes import descendants, still_alive, watched
from tests.mesh.running import ROOT, RunningMesh, running_mesh, short_folder

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(200)]

_ANSWERS = 6
_OFFSETS = 40


@dataclass(frozen=True, slots=True)
class Killed:
    """A mesh that answered before its `up` was killed."""

    folder: Path
    described: Mapping[str, Any]
    answers: tuple[Completion, ...]
    processes: int
    survivors: Set[int]


@dataclass(frozen=True, slots=True)
class Stopped:
    """A mesh that `teemesh down` has stopped."""

    state: Path
    down: subprocess.CompletedProcess[str]
    up_status: int
    survivors: Set[int]


@pytest.fixture(scope="module")
def killed() -> Iterator[Killed]:
    with short_folder() as folder, running_mesh(folder) as mesh:
        described, answers = mesh.mesh, asyncio.run(_ask(mesh))
        with watched(descendants(mesh.up.pid)) as processes:
            mesh.up.kill()
            mesh.up.wait(10)
            survivors = still_alive(processes, within_seconds=2)
        yield Killed(folder, described, answers, len(processes), survivors)


async def _ask(mesh: RunningMesh) -> tuple[Completion, ...]:
    record = Record()
    async with open_client(mesh.mesh) as client:
        for number in range(_ANSWERS):
            await client.ask(number, record, stream=number % 2 == 1)
    assert len(record.completions) == _ANSWERS, record.errors
    return tuple(record.completions)


@pytest.fixture(scope="module")
def again(killed: Killed) -> Iterator[RunningMesh]:
    """The same folder, started again."""
    with running_mesh(killed.folder) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def stopped(again: RunningMesh) -> Stopped:
    with watched(descendants(again.up.pid)) as processes:
        assert len(processes) >= 11
        down = again.run("down", timeout=100)
        return Stopped(again.state, down, again.up.wait(10), still_alive(processes, within_seconds=1))


def test_a_killed_up_leaves_no_process(killed: Killed) -> None:
    assert killed.processes >= 11
    assert killed.survivors == set()


def test_a_killed_meshs_folder_starts_again_as_the_same_mesh(killed: Killed, again: RunningMesh) -> None:
    assert again.mesh["api_key"] == killed.described["api_key"]
    assert again.file("mesh_ca")
    assert again.mesh["policy"] == killed.described["policy"]


async def test_what_was_answered_before_a_mesh_was_killed_is_proven_after(killed: Killed, again: RunningMesh) -> None:
    async with open_client(again.mesh) as client:
        assert await Prover(client, again.mesh).prove_all(killed.answers) == []


async def test_a_mesh_that_was_killed_answers_again_with_proof(again: RunningMesh) -> None:
    record = Record()
    async with open_client(again.mesh) as client:
        assert await client.ask(_ANSWERS, record, stream=True) is not None
        assert await Prover(client, again.mesh).prove_all(record.completions) == []


def test_down_ends_every_process(stopped: Stopped) -> None:
    assert stopped.down.returncode == 0, stopped.down.stderr
    assert stopped.up_status == 0
    assert stopped.survivors == set()
    assert not (stopped.state / "mesh.json").exists()


def test_the_ledger_refuses_every_flipped_byte_and_names_its_place(stopped: Stopped) -> None:
    name, data = _segment(stopped.state)
    ends = _frame_ends(data)
    chance = random.Random(2)  # noqa: S311 - which bytes, not a secret
    header = chance.sample(range(segments.HEADER_SIZE), 8)
    early = chance.sample(range(segments.HEADER_SIZE, ends[-2]), _OFFSETS - 16)
    last = chance.sample(range(ends[-2], ends[-1]), 8)
    with _platform(stopped.state):
        refused = list(start_on_flipped(stopped.state, name, [*header, *early, *last]))
    assert len(refused) == _OFFSETS
    for start in refused:
        assert start.status == (4 if start.at in last else 3), start
        reason = "LOG_ROLLED_BACK" if start.at in last else "LOG_DAMAGED"
        assert start.line.startswith(f"ledger: {reason}: {name} "), start
        named = int(start.line.partition(" at byte ")[2].split(":")[0])
        begin, end = _piece(start.at, ends)
        assert begin <= named < end, start


def test_up_says_which_byte_is_damaged_each_time_it_has_tried(stopped: Stopped) -> None:
    with _damaged(stopped.state) as name:
        command = ["up", "--state", str(stopped.state), "--router-port", str(free_port())]
        with subprocess.Popen(
            [sys.executable, "-m", "services.cli", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as up:
            assert up.stdout is not None
            ends = _until_third(up.stdout, "ledger exited with status 3")
            up.terminate()
            up.communicate(timeout=60)
    assert up.returncode == 0
    assert len(ends) == 3
    assert all(f"ledger: LOG_DAMAGED: {name} is damaged at byte " in line for line in ends), ends
    moments = [float(line.partition("[")[2].partition(" s]")[0]) for line in ends]
    assert moments == sorted(moments)


async def test_a_restored_log_proves_every_answer(killed: Killed, stopped: Stopped) -> None:
    assert not (stopped.state / "mesh.json").exists()
    with running_mesh(killed.folder) as restored:
        async with open_client(restored.mesh) as client:
            assert await Prover(client, restored.mesh).prove_all(killed.answers) == []


@contextmanager
def _damaged(state: Path) -> Iterator[str]:
    """A byte of the log's only segment is another; afterwards the log is as it was."""
    name, data = _segment(state)
    path = state / "state" / "ledger" / "log" / SEGMENTS / name
    path.write_bytes(flipped(data, segments.HEADER_SIZE + 7))
    try:
        yield name
    finally:
        path.write_bytes(data)


def _until_third(lines: Iterable[str], said: str) -> list[str]:
    found: list[str] = []
    for line in lines:
        if said in line:
            found.append(line)
        if len(found) == 3:
            break
    return found


def _segment(state: Path) -> tuple[str, bytes]:
    """The log's only segment."""
    (path,) = (state / "state" / "ledger" / "log" / SEGMENTS).iterdir()
    return path.name, path.read_bytes()


def _frame_ends(data: bytes) -> Sequence[int]:
    """Where the header and each frame after it end."""
    ends = [segments.HEADER_SIZE]
    while any(start := data[ends[-1] : ends[-1] + frames.HEADER_SIZE]):
        ends.append(ends[-1] + frames.parse_header(start).length)
    return ends


def _piece(at: int, ends: Sequence[int]) -> tuple[int, int]:
    """The header or frame that a byte lies in."""
    starts = [0, *ends]
    return next((start, end) for start, end in zip(starts, ends, strict=False) if start <= at < end)


@contextmanager
def _platform(state: Path) -> Iterator[None]:
    """The software TEE alone: the ledger asks it which mesh it was measured for before it opens a log."""
    command = [sys.executable, "-m", "services.devtee", str(state / "config" / "devtee.toml")]
    notify = state / "sockets" / "test.notify"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "NOTIFY_SOCKET": str(notify)}) as devtee,
    ):
        try:
            ready.bind(str(notify))
            ready.settimeout(30)
            while b"READY=1" not in ready.recv(4096):
                pass
            yield
        finally:
            devtee.terminate()
            notify.unlink()
