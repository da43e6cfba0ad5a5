from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from libs.process import Exit, Program, supervised
from libs.process.supervisor import Backoff, CannotStart

READY = "import libs.process as p; p.notify_ready()\n"


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


async def _gone(pidfd: int) -> None:
    """Wait until the process behind a pidfd has ended."""
    await asyncio.to_thread(select.select, [pidfd], [], [], 10)
    readable, _, _ = select.select([pidfd], [], [], 0)
    os.close(pidfd)
    assert readable, "the process is still there"


def test_backoff_doubles_up_to_its_limit_and_forgets_after_a_sound_life() -> None:
    backoff = Backoff()
    assert [backoff.after(0.0) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert backoff.after(10.0) == 0.1


async def test_a_child_that_dies_is_started_again_after_growing_pauses(tmp_path: Path) -> None:
    ends: list[Exit] = []
    pauses: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            enough.set()
            await asyncio.Event().wait()

    program = Program("dying", _python("print('hello', flush=True); raise SystemExit(3)"), log=tmp_path / "log")
    async with asyncio.timeout(20), supervised(program, on_exit=ends.append, sleep=sleep):
        await enough.wait()
    assert pauses == [0.1, 0.2, 0.4]
    assert [ended.code for ended in ends] == [3, 3, 3]
    assert ends[0].line.startswith("dying exited with status 3 after ")
    assert (tmp_path / "log").read_text() == "hello\n" * 3


async def test_a_program_that_is_not_to_restart_ends_once() -> None:
    ends: list[Exit] = []
    ended = asyncio.Event()

    def on_exit(one: Exit) -> None:
        ends.append(one)
        ended.set()

    async with asyncio.timeout(20), supervised(Program("once", ("true",), restart=False), on_exit=on_exit):
        await ended.wait()
    assert [(one.code, one.asked) for one in ends] == [(0, False)]


async def test_stopping_asks_first_and_nothing_is_restarted(tmp_path: Path) -> None:
    ends: list[Exit] = []
    code = (
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        + READY
        + "while 1: signal.pause()"
    )
    program = Program("polite", _python(code), notify=tmp_path / "notify")
    async with asyncio.timeout(20), supervised(program, on_exit=ends.append) as supervisor:
        await supervisor.until_ready()
    assert [(ended.code, ended.asked) for ended in ends] == [(7, True)]


async def test_a_deaf_child_is_killed_after_its_grace_with_all_that_it_started(tmp_path: Path) -> None:
    ends: list[Exit] = []
    code = (
        "import signal, subprocess, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "import libs.process as p; p.notify_status(str(child.pid)); p.notify_ready()\nwhile 1: signal.pause()"
    )
    program = Program("deaf", _python(code), notify=tmp_path / "notify", grace_seconds=0.1)
    async with asyncio.timeout(30):
        async with supervised(program, on_exit=ends.append) as supervisor:
            await supervisor.until_ready()
            grandchild = os.pidfd_open(int(supervisor.status))
        await _gone(grandchild)
    assert [(ended.code, ended.asked) for ended in ends] == [(-signal.SIGKILL, True)]
    assert "killed by SIGKILL" in ends[0].line


async def test_a_folder_that_is_missing_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with supervised(Program("lost", ("true",), folder=tmp_path / "absent")):
            await asyncio.Event().wait()
    assert caught.group_contains(CannotStart, match="cannot start lost")


_SUPERVISOR = """
import asyncio, sys
from libs.process import Program, supervised, notify_ready, notify_status

CHILD = '''
import subprocess, signal, sys, os
from libs.process import tethered, notify_ready, notify_status
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen(tethered(["sleep", "600"]), process_group=0)
notify_status(f"{os.getpid()} {grandchild.pid}")
notify_ready()
signal.pause()
'''

async def main():
    program = Program("child", (sys.executable, "-c", CHILD), notify=__import__("pathlib").Path(sys.argv[1]))
    async with supervised(program) as supervisor:
        await supervisor.until_ready()
        notify_status(supervisor.status)
        notify_ready()
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_killing_the_supervisor_leaves_neither_child_nor_grandchild(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", _SUPERVISOR, str(tmp_path / "inner"))
    program = Program("supervisor", argv, notify=tmp_path / "outer", restart=False)
    async with asyncio.timeout(60), supervised(program) as supervisor:
        await supervisor.until_ready()
        assert supervisor.pid is not None
        family = [os.pidfd_open(int(pid)) for pid in supervisor.status.split()]
        assert len(family) == 2
        # The child and the grandchild are in groups of their own: only the tether reaches them.
        os.kill(supervisor.pid, signal.SIGKILL)
        for pidfd in family:
            await _gone(pidfd)


async def test_a_ready_child_is_forgotten_when_it_dies(tmp_path: Path) -> None:
    paused = asyncio.Event()

    async def sleep(seconds: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    code = READY + "import signal; signal.pause()"
    program = Program("mortal", _python(code), notify=tmp_path / "notify")
    async with asyncio.timeout(20), supervised(program, sleep=sleep) as supervisor:
        await supervisor.until_ready()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        await paused.wait()
        assert not supervisor.ready
        assert supervisor.pid is None


async def test_what_a_hushed_child_writes_is_read_by_nobody_and_its_next_start_is_heard_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ends: asyncio.Queue[Exit] = asyncio.Queue()
    # More than any pipe holds: a child whose pipe nobody empties would stay in the middle of it.
    code = (
        "import os, signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
        + READY
        + "signal.sigwait({signal.SIGUSR1})\nprint('x' * 500_000, 'out', flush=True)\n"
        "print('last words', file=sys.stderr, flush=True)\nraise SystemExit(3)"
    )
    program = Program("told", _python(code), hushable=True, notify=tmp_path / "notify")
    async with asyncio.timeout(30), supervised(program, on_exit=ends.put_nowait) as supervisor:
        for is_hushed in (True, False):
            await supervisor.until_ready()
            if is_hushed:
                supervisor.hush()
            assert supervisor.pid is not None
            os.kill(supervisor.pid, signal.SIGUSR1)
            assert (await ends.get()).code == 3
            written = capfd.readouterr().err
            assert ("x out\nlast words\n" in written) is not is_hushed
            assert ("x" * 1000 in written) is not is_hushed


async def test_a_child_that_cannot_start_leaves_no_pipe_behind(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ExceptionGroup):
        async with supervised(Program("lost", ("true",), folder=tmp_path / "absent", hushable=True)):
            await asyncio.Event().wait()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == len(before)
