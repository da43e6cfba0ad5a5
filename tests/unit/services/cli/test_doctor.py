from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

import pytest
from rich.console import Console

from services.cli.doctor.command import show
from services.cli.doctor.findings import Finding
from services.cli.doctor.installation import examine_installation
from services.cli.doctor.state_examination import examine_state
from services.cli.mesh.layout import Layout
from services.cli.mesh.ports import HOST


@pytest.fixture
def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wrong(layout: Layout, router_port: int) -> set[str]:
    return {finding.what for finding in examine_state(layout, router_port) if not finding.sound}


def test_this_installation_is_sound() -> None:
    assert [finding for finding in examine_installation() if not finding.sound] == []


def test_a_state_folder_that_is_not_there_yet_is_sound(tmp_path: Path, free_port: int) -> None:
    assert wrong(Layout(tmp_path / "state"), free_port) == set()


def test_a_fresh_state_folder_is_sound(tmp_path: Path, free_port: int) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    assert wrong(layout, free_port) == set()


def test_a_taken_router_port_is_found(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        assert wrong(Layout(tmp_path / "state"), taken.getsockname()[1]) == {"ports"}


def test_an_open_state_folder_is_found(tmp_path: Path, free_port: int) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    layout.root.chmod(0o755)
    assert wrong(layout, free_port) == {"state"}


def test_a_policy_that_cannot_be_verified_is_found(tmp_path: Path, free_port: int) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    layout.policy(1).write_text("{}")
    assert wrong(layout, free_port) == {"policy"}


def test_a_clock_that_went_back_is_found(tmp_path: Path, free_port: int) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    path = layout.root / "config" / "ports.json"
    path.write_text("{}")
    tomorrow = time.time() + 86400
    os.utime(path, (tomorrow, tomorrow))
    assert wrong(layout, free_port) == {"clock"}


def test_what_is_wrong_is_shown_with_what_to_do() -> None:
    output = io.StringIO()
    findings = [Finding("clock", "right"), Finding("ports", "8443 is taken", "stop who uses it")]
    assert show(findings, Console(file=output)) == 1
    assert "WRONG  ports: 8443 is taken\n       do: stop who uses it" in output.getvalue()
    assert show(findings[:1], Console(file=output)) == 0
