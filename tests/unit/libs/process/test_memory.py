"""A protected process is dumped nowhere and shown to nobody, and says so itself: root may look at any."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[4]
_TELL = """
import ctypes, resource
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))
"""
_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


async def _run(source: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, *arguments, cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode().split("\n")[0]


async def test_a_protected_process_is_not_dumpable_and_its_limit_is_zero() -> None:
    assert (await _run(_TELL)).startswith("1 ")  # What it would be.
    assert await _run(f"from libs.process import protect_memory; protect_memory()\n{_TELL}") == "0 0 0"


async def test_what_it_starts_writes_no_dump_either() -> None:
    protected = f"from libs.process import protect_memory; protect_memory()\n{_CHILD}"
    assert (await _run(protected, _TELL)).endswith(" 0 0")


async def test_every_service_is_protected_before_it_runs(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("answer = 42\n")
    source = f"""
import sys
from dataclasses import dataclass
from libs.entry import run

@dataclass(frozen=True, slots=True)
class Config:
    answer: int

async def main(config):
    exec({_TELL!r})

sys.argv[1:] = [{str(tmp_path / "config.toml")!r}]
sys.exit(run("thing", Config, main))
"""
    assert await _run(source) == "0 0 0"
