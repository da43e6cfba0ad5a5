"""An operator reaches whichever registry is there, and no command that talks to one knows only the first."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from libs.errors import MeshError
from services.cli.mesh.registry_access import RegistryClient, read_registry_access
from services.cli.providers import command as providers
from services.cli.sessions import command as sessions
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.operators_mesh import OperatorsMesh, operators_mesh

NOBODY = "127.0.0.1:9"

Run = Callable[..., Awaitable[int]]


@pytest.fixture
async def running(mesh: JoinedMesh, tmp_path: Path) -> AsyncIterator[OperatorsMesh]:
    """A mesh whose first registry is dead."""
    async with operators_mesh(mesh, tmp_path) as running:
        described = json.loads(running.mesh.read_bytes())
        running.mesh.write_text(json.dumps(described | {"registry_grpc": [NOBODY, described["registry_grpc"]]}))
        await running.node("one")
        yield running


@pytest.fixture
def run(running: OperatorsMesh) -> Run:
    """Run a command, which has an event loop of its own, beside the services that it asks."""

    async def run(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        commands = parser.add_subparsers(required=True)
        providers.add_parser(commands)
        sessions.add_parser(commands)
        args = parser.parse_args([*arguments, "--mesh", str(running.mesh)])
        code: int = await asyncio.to_thread(args.run, args)
        return code

    return run


async def test_every_command_is_answered_by_the_second(
    running: OperatorsMesh, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (session,) = running.registry.sessions
    for command in (
        ("providers", "list"),
        ("providers", "show", "one"),
        ("providers", "drain", "one", "--reason", "a test"),
        ("providers", "resume", "one"),
        ("sessions", "list"),
        ("sessions", "show", session.hex()),
        ("sessions", "verify", session.hex()),
    ):
        assert await run(*command) == 0, command
        assert f"no answer from the registry at {NOBODY}" in capsys.readouterr().err, command


async def test_a_refusal_is_an_answer_and_nobody_else_is_asked(
    running: OperatorsMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    described = json.loads(running.mesh.read_bytes())
    running.mesh.write_text(json.dumps(described | {"registry_grpc": [*reversed(described["registry_grpc"])]}))

    async def ask(registry: RegistryClient) -> bytes:
        return await registry.session(bytes(32))

    with pytest.raises(MeshError) as refusal:
        await read_registry_access(running.mesh).ask(ask, 10.0)
    assert refusal.value.reason == "SESSION_UNKNOWN"
    assert "no answer" not in capsys.readouterr().err


async def test_where_none_answers_it_is_said(running: OperatorsMesh) -> None:
    described = json.loads(running.mesh.read_bytes())
    running.mesh.write_text(json.dumps(described | {"registry_grpc": [NOBODY, NOBODY]}))
    with pytest.raises(MeshError) as refusal:
        await read_registry_access(running.mesh).ask(lambda registry: registry.providers(), 10.0)
    assert refusal.value.reason == "UNAVAILABLE"
