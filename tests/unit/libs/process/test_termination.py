from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

import pytest

from libs.process import tethered, until_terminated


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    waiting = asyncio.ensure_future(until_terminated())
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
    async with asyncio.timeout(5):
        await waiting
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def _run(argv: list[str]) -> tuple[int | None, bytes]:
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    return process.returncode, errors


async def test_a_tethered_program_runs_as_itself() -> None:
    assert await _run(tethered(["sh", "-c", "exit 5"])) == (5, b"")


async def test_a_program_that_is_not_there_is_named() -> None:
    assert await _run(tethered(["/absent/program"])) == (
        1,
        b"tether: cannot run /absent/program: No such file or directory\n",
    )


def _printing(expression: str) -> list[str]:
    return [sys.executable, "-c", f"import resource, sys; sys.stderr.write(str({expression}))"]


async def test_memory_is_bounded_where_it_is_asked_for() -> None:
    limits = "resource.getrlimit(resource.RLIMIT_DATA)"
    most = 256 << 20
    assert await _run(tethered(_printing(limits), memory_bytes=most)) == (0, str((most, most)).encode())
    assert await _run(tethered(_printing(limits))) == (0, str(resource.getrlimit(resource.RLIMIT_DATA)).encode())
    code, said = await _run(tethered(_printing(f"len(bytes({2 * most}))"), memory_bytes=most))
    assert (code, said.splitlines()[-1]) == (1, b"MemoryError")


async def test_the_kernel_ends_first_what_it_is_told_to() -> None:
    score = "open('/proc/self/oom_score_adj').read().strip()"
    own = await _run(_printing(score))
    assert await _run(tethered(_printing(score), oom_score_adj=700)) == (0, b"700")
    assert await _run(tethered(_printing(score))) == own


async def test_a_child_whose_parent_is_already_gone_does_not_start() -> None:
    argv = tethered(["sh", "-c", "exit 5"])
    argv[argv.index(str(os.getpid()))] = "1"  # As if the parent had ended and init had taken over.
    assert await _run(argv) == (1, b"tether: the parent is gone\n")
