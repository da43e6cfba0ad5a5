from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from libs.process import notify_ready, notify_status, notify_stopping
from libs.process.readiness import listening


def test_without_a_socket_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_ready()


def test_a_supervisor_that_is_gone_does_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify_ready()


async def test_ready_is_heard_through_the_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    async with asyncio.timeout(5):
        with listening(path) as readiness:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            notify_status("loading\nweights")
            notify_ready()
            await readiness.until_ready()
            assert readiness.status == "loading weights"
    assert not path.exists()


async def test_stopping_is_no_longer_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with listening(tmp_path / "notify") as readiness:
        heard: list[bool] = []
        for notify in (notify_ready, notify_stopping):
            notify()
            readiness.receive()
            heard.append(readiness.ready)
    assert heard == [True, False]


async def test_what_a_dead_process_sent_does_not_speak_for_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with listening(tmp_path / "notify") as readiness:
        notify_ready()
        readiness.forget()
        readiness.receive()
        assert not readiness.ready
