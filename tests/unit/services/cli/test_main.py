"""The command as a process: exit statuses, and one line for each refusal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


def teemesh(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_command() -> None:
    shown = teemesh("--help")
    assert shown.returncode == 0
    for command in (
        "up",
        "down",
        "status",
        "doctor",
        "reset",
        "chat",
        "verify",
        "ledger",
        "policy",
        "providers",
        "sessions",
    ):
        assert f"    {command} " in shown.stdout


def test_who_names_a_command_loads_no_other() -> None:
    counted = "import sys; from services.cli.__main__ import main; main(['operator-key', '/none']);"
    counted += "print(sorted({name.split('.')[2] for name in sys.modules if name.startswith('services.cli.')}))"
    command = [sys.executable, "-c", counted]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['__main__', 'mesh', 'terminal']\n"


def test_a_refusal_is_one_line_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    refused = teemesh("reset", "--yes", "--state", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr.startswith("teemesh: STATE_UNUSABLE: ")
    assert len(refused.stderr.splitlines()) == 1


def test_status_without_a_mesh_says_how_to_start_one(tmp_path: Path) -> None:
    refused = teemesh("status", "--state", str(tmp_path))
    assert refused.returncode == 1
    assert "teemesh up" in refused.stderr


def test_an_impossible_port_is_refused_by_the_command_line() -> None:
    refused = teemesh("up", "--router-port", "70000")
    assert refused.returncode == 2
    assert "from 1 to 65535" in refused.stderr


def test_a_number_of_ledger_members_that_is_not_run_here_is_refused_by_the_command_line() -> None:
    refused = teemesh("up", "--ledger-members", "5")
    assert refused.returncode == 2
    assert "choose from 1, 3" in refused.stderr


@pytest.mark.parametrize("command", [("publish", "policy.json"), ("revocations",)], ids=["publish", "revocations"])
@pytest.mark.parametrize("seconds", ["nan", "0"])
def test_a_time_limit_that_is_none_is_refused_by_the_command_line(command: tuple[str, ...], seconds: str) -> None:
    refused = teemesh("policy", *command, "--timeout-seconds", seconds)
    assert refused.returncode == 2
    assert "more than 0 and at most" in refused.stderr
