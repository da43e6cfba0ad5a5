"""The service as a process: what it publishes, what a kill leaves, how it says no."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from dstack_sdk import AsyncDstackClient

ROOT = Path(__file__).parents[4]
COMPOSE = b'{"name":"node"}'


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="devtee") as name:
        path = Path(name)
        (path / "node.json").write_bytes(COMPOSE)
        (path / "config.toml").write_text(
            'state_dir = "state"\npccs_listen = "127.0.0.1:0"\n\n'
            '[[instances]]\nname = "node-1"\nsocket = "node-1.sock"\napp_compose = "node.json"\n'
        )
        yield path


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, from the moment it says READY=1."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
        address = folder / "notify.sock"
        address.unlink(missing_ok=True)
        notify.bind(str(address))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.devtee",
            str(folder / "config.toml"),
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
        )
        try:
            async with asyncio.timeout(60):
                while b"READY=1" not in await asyncio.get_running_loop().sock_recv(notify, 4096):
                    pass
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def reference(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "state" / "reference.json").read_bytes())
    return values


async def test_published_values_are_those_of_the_evidence(folder: Path) -> None:
    async with running(folder) as process:
        values = reference(folder)
        async with AsyncDstackClient(str(folder / "node-1.sock"), timeout=30) as client:
            quote = (await client.get_quote(b"x")).decode_quote()
            info = await client.info()
        collateral = await dcap_qvl.get_collateral(values["pccs_url"], quote)
        verified = dcap_qvl.verify_with_root_ca(
            quote, collateral, bytes.fromhex(values["vendor_root"]), int(time.time())
        )
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    assert verified.status == "UpToDate"
    assert sha256(bytes(verified.ppid)).hexdigest() == values["device_id"]
    report: Any = dcap_qvl.parse_quote(quote).report
    measured = {
        "mrtd": bytes(report.mr_td).hex(),
        "rtmr0": bytes(report.rt_mr0).hex(),
        "rtmr1": bytes(report.rt_mr1).hex(),
        "rtmr2": bytes(report.rt_mr2).hex(),
        "td_attributes": bytes(report.td_attributes).hex(),
        "os_image_hash": info.os_image_hash,
        "key_provider": sha256(info.key_provider_info.encode()).hexdigest(),
        "instances": {"node-1": {"app_id": info.app_id, "compose_hash": sha256(COMPOSE).hexdigest()}},
    }
    assert {name: values[name] for name in measured} == measured
    assert values["development"] is True
    assert not (folder / "node-1.sock").exists()


async def test_a_killed_service_comes_back_as_the_same_machine(folder: Path) -> None:
    async with running(folder) as process:
        first = reference(folder)
        process.kill()
        await process.wait()
    assert (folder / "node-1.sock").exists()
    async with running(folder), AsyncDstackClient(str(folder / "node-1.sock"), timeout=30) as client:
        second = reference(folder)
        assert await client.is_reachable()
    assert {**first, "pccs_url": ""} == {**second, "pccs_url": ""}


def run_once(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.devtee", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_configuration_can_be_checked_without_starting(folder: Path) -> None:
    assert run_once(str(folder / "config.toml"), "--check-config").returncode == 0
    assert not (folder / "state").exists()


def test_a_wrong_configuration_is_refused_in_one_line(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("127.0.0.1:0", "0.0.0.0:0"))
    refused = run_once(str(config), "--check-config")
    assert refused.returncode == 2
    assert refused.stderr.startswith("devtee: LISTEN_ADDRESS_REFUSED: ")
    assert len(refused.stderr.splitlines()) == 1


def test_a_missing_compose_is_refused(folder: Path) -> None:
    (folder / "node.json").unlink()
    refused = run_once(str(folder / "config.toml"))
    assert refused.returncode == 1
    assert "devtee: COMPOSE_UNREADABLE: " in refused.stderr
