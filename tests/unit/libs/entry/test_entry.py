"""How a service process begins and ends, seen from the command line."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from libs.entry import run
from libs.errors import Code, MeshError


@dataclass(frozen=True, slots=True)
class Config:
    """One number."""

    answer: int


class Refused(MeshError):
    """What `main` refuses with."""

    code = Code.FAILED_PRECONDITION
    reason = "REFUSED_FOR_TEST"


class RefusedLoudly(Refused):
    """An error with an exit status of its own."""

    exit_status = 7


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A process configures its log once and ends; this one goes on."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.NOTSET)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("answer = 42\n")
    monkeypatch.setattr(sys, "argv", ["service", str(path)])
    return path


def failing_with(error: Exception) -> int:
    async def main(config: Config) -> None:
        raise error

    return run("thing", Config, main)


def test_the_configuration_reaches_main_and_a_clean_stop_is_success(config: Path) -> None:
    seen: list[int] = []

    async def main(given: Config) -> None:
        seen.append(given.answer)

    assert run("thing", Config, main) == 0
    assert seen == [42]


def test_checking_runs_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--check-config"])
    assert failing_with(AssertionError("main ran")) == 0


@pytest.mark.parametrize("text", ["answer = 'x'\n", "", "answer = 1\nother = 2\n", "="])
def test_a_refused_configuration_is_one_line_and_status_2(
    config: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    assert failing_with(AssertionError("main ran")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("thing: CONFIG_INVALID: ")


def test_a_missing_configuration_is_refused_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.unlink()
    assert failing_with(AssertionError("main ran")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        Refused("no"),
        ExceptionGroup("tasks", [Refused("no")]),
        ExceptionGroup("outer", [ExceptionGroup("inner", [Refused("no"), RefusedLoudly("later")])]),
    ],
)
@pytest.mark.usefixtures("config")
def test_a_refusal_is_one_line_however_deep_it_was(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing_with(error) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "thing: REFUSED_FOR_TEST: no"


@pytest.mark.usefixtures("config")
def test_a_refusal_may_choose_its_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing_with(RefusedLoudly("no")) == 7


@pytest.mark.usefixtures("config")
def test_a_bug_is_not_dressed_up_as_a_refusal() -> None:
    with pytest.raises(ExceptionGroup) as error:
        failing_with(ExceptionGroup("tasks", [Refused("no"), ZeroDivisionError()]))
    assert error.group_contains(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        failing_with(ZeroDivisionError())


@pytest.mark.usefixtures("config")
def test_a_failing_task_ends_the_process_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    async def main(config: Config) -> None:
        async def fail() -> None:
            raise Refused("from a task")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            await asyncio.Event().wait()

    assert run("thing", Config, main) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "thing: REFUSED_FOR_TEST: from a task"
