"""What is left of a mesh that was killed whole, and what its folder gives again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.ledger import frames, segments
from services.ledger.segment_files import SEGMENTS
from tests.faults.load import Record, open_client
from tests.faults.proof import Prover
from tests.mesh.processes import descendants, still_alive, watched
from tests.mesh.running import ROOT, free_port, running_mesh, short_folder

pytestmark = pytest.mark.mesh

_ANSWERS = 6
_OFFSETS = 40


@pytest.mark.timeout(200)
async def test_a_mesh_killed_whole_leaves_nothing_running_and_everything_stored() -> None:
    with short_folder() as folder:
        record = Record()
        with running_mesh(folder) as mesh:
            async with open_client(mesh.mesh) as client:
                for number in range(_ANSWERS):
                    await client.ask(number, record, stream=number % 2 == 1)
            assert len(record.completions) == _ANSWERS, record.errors
            with watched(descendants(mesh.up.pid)) as processes:
                assert len(processes) >= 11
                mesh.up.kill()
                mesh.up.wait(10)
                assert still_alive(processes, within_seconds=2) == set()
        with running_mesh(folder) as again:
            async with open_client(again.mesh) as client:
                assert await Prover(client, again.mesh).prove_all(record.completions) == []
                assert await client.ask(_ANSWERS, record, stream=True) is not None
                assert await Prover(client, again.mesh).prove_all(record.completions[-1:]) == []
        _refuses_every_flipped_byte(folder / "s")
        _up_says_which_byte(folder / "s")
        with running_mesh(folder) as restored:
            async with open_client(restored.mesh) as client:
                assert await Prover(client, restored.mesh).prove_all(record.completions) == []


def _refuses_every_flipped_byte(state: Path) -> None:
    """The ledger as a process, on copies of its stopped log, one byte of which is another in each."""
    name, data = _segment(state)
    ends = _frame_ends(data)
    chance = random.Random(2)  # noqa: S311 - which bytes, not a secret
    header = chance.sample(range(segments.HEADER_SIZE), 8)
    early = chance.sample(range(segments.HEADER_SIZE, ends[-2]), _OFFSETS - 16)
    last = chance.sample(range(ends[-2], ends[-1]), 8)
    with _platform(state), ThreadPoolExecutor(2) as two:
        verdicts = list(two.map(lambda at: _start_flipped(state, name, at), [*header, *early, *last]))
    for at, ended in zip([*header, *early, *last], verdicts, strict=True):
        assert ended.returncode == (4 if at in last else 3), f"byte {at}: {ended.returncode} {ended.stderr}"
        reason = "LOG_ROLLED_BACK" if at in last else "LOG_DAMAGED"
        line = ended.stderr.strip().splitlines()[-1]
        assert line.startswith(f"ledger: {reason}: {name} "), line
        named = int(line.partition(" at byte ")[2].split(":")[0])
        start, end = _piece(at, ends)
        assert start <= named < end, f"byte {at} was flipped, and {named} is named"


def _up_says_which_byte(state: Path) -> None:
    """With a damaged log `up` says what is wrong each time it has tried; restored, the log is as it was."""
    name, data = _segment(state)
    path, at = state / "state" / "ledger" / "log" / SEGMENTS / name, segments.HEADER_SIZE + 7
    path.write_bytes(_flipped(data, at))
    command = [sys.executable, "-m", "services.cli", "up", "--state", str(state), "--router-port", str(free_port())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        assert up.stdout is not None
        ends = _until_third(up.stdout, "ledger exited with status 3")
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=60)
    assert up.returncode == 0
    assert all(f"ledger: LOG_DAMAGED: {name} is damaged at byte " in line for line in ends), ends
    moments = [float(line.partition("[")[2].partition(" s]")[0]) for line in ends]
    assert moments == sorted(moments)
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


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def _start_flipped(state: Path, name: str, at: int) -> subprocess.CompletedProcess[str]:
    copy = state / f"flipped-{at}"
    shutil.copytree(state / "state" / "ledger" / "log", copy)
    path = copy / SEGMENTS / name
    path.write_bytes(_flipped(path.read_bytes(), at))
    config = copy / "ledger.toml"
    text = (state / "config" / "ledger.toml").read_text()
    config.write_text(text.replace(str(state / "state" / "ledger" / "log"), str(copy)))
    command = [sys.executable, "-m", "services.ledger", str(config)]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    finally:
        shutil.rmtree(copy)


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
