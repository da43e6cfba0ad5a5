"""`teemesh chat` against a router over real TLS: what it prints, and when it fails."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from libs.client.checks import Check
from libs.errors import MeshError
from services.cli.chat import command
from services.cli.chat.command import chat
from services.cli.terminal.checks import print_checks, printable
from services.cli.terminal.inputs import InputUnreadable
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.gathered import describe
from tests.fakes.https_router import API_KEY, RouterTwin, serving


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[RouterTwin]:
    """A router that mesh.json in the test's folder describes, files by paths relative to it."""
    twin = RouterTwin(AttestedMesh.create(int(time.time())))
    async with serving(twin, tmp_path):
        describe(twin.mesh, tmp_path, twin.url, API_KEY)
        yield twin


def _console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=200), text


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_comes_with_every_check(router: RouterTwin, tmp_path: Path, stream: bool) -> None:
    console, text = _console()
    assert await chat(tmp_path, "hello?", stream=stream, console=console)

    shown = text.getvalue()
    assert "Hello, world\n" in shown
    assert shown.count("PASS") == 12
    assert "FAIL" not in shown
    assert shown.endswith("VERIFIED: 12 of 12 checks passed\n")
    assert "DEVELOPMENT" in shown.splitlines()[0]


async def test_what_is_asked_is_bounded_and_demands_verified_serving(router: RouterTwin, tmp_path: Path) -> None:
    await chat(tmp_path, "hello?", console=_console()[0])

    asked = json.loads(router.prompts[0])
    assert (asked["max_tokens"], asked["temperature"], asked["stream"]) == (64, 0, True)
    assert asked["messages"] == [{"role": "user", "content": "hello?"}]
    assert asked["provider"] == {"aci_verified": True}


async def test_one_failed_check_fails_the_command(router: RouterTwin, tmp_path: Path) -> None:
    router.lies["response"] = lambda body: body.replace(b"world", b"there")
    console, text = _console()
    assert not await chat(tmp_path, "hello?", console=console)

    assert "FAIL  5 receipt is for the response received: RESPONSE_NOT_RECEIPTED" in text.getvalue()
    assert text.getvalue().endswith("NOT VERIFIED: 11 of 12 checks passed\n")


async def test_a_stream_that_breaks_off_is_said_and_still_checked(router: RouterTwin, tmp_path: Path) -> None:
    router.lies["response"] = lambda body: body.removesuffix(b"data: [DONE]\n\n")
    console, text = _console()
    assert not await chat(tmp_path, "hello?", console=console)

    assert "ANSWER_BROKEN_OFF" in text.getvalue()
    assert "RESPONSE_NOT_RECEIPTED" in text.getvalue()


async def test_a_router_that_is_not_attested_gets_no_prompt(router: RouterTwin, tmp_path: Path) -> None:
    router.lies["report"] = lambda _: router.mesh.report("00" * 32)
    with pytest.raises(MeshError) as refused:
        await chat(tmp_path, "hello?", console=_console()[0])

    assert refused.value.reason == "REPORT_DATA_MISMATCH"
    assert router.prompts == []


@pytest.mark.parametrize(("honest", "status"), [(True, 0), (False, 1)])
async def test_the_exit_status_is_the_verdict(router: RouterTwin, tmp_path: Path, honest: bool, status: int) -> None:
    if not honest:
        router.lies["receipt"] = lambda receipt: receipt.replace(b"smollm2", b"smollm3")
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["chat", "hello?", "--state", str(tmp_path), "--no-stream"])

    assert await asyncio.to_thread(args.run, args) == status


async def test_without_a_mesh_the_command_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match=r"mesh\.json"):
        await chat(tmp_path, "hello?")


@pytest.mark.parametrize("lacking", ["api_key", "operator_public_keys", "operator_threshold", "policy"])
async def test_a_description_that_lacks_something_is_named(router: RouterTwin, tmp_path: Path, lacking: str) -> None:
    path = tmp_path / "mesh.json"
    described = json.loads(path.read_text())
    del described[lacking]
    path.write_text(json.dumps(described))
    with pytest.raises(InputUnreadable, match=lacking):
        await chat(tmp_path, "hello?", console=_console()[0])

    assert router.seen_keys == []


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert printable("\x1b[2Jgood\r\x07\n\tmorning\u202e ü") == "[2Jgood\n\tmorning ü"


def test_no_check_at_all_is_no_verification() -> None:
    assert not print_checks([], _console()[0])


def test_markup_in_a_detail_is_only_text() -> None:
    console, text = _console()
    print_checks([Check(1, "name", True, "[bold]not markup[/bold]")], console)

    assert "[bold]not markup[/bold]" in text.getvalue()
