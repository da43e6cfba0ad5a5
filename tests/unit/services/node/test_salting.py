"""An engine that keeps one cache for all tenants serves only where it was seen to read a salt, and to part by it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, DEFINED, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from libs.policy.engine_server import SOCKET, WEIGHTS
from libs.weights import measure
from services.node.channel import EngineUnavailable, SaltIgnored
from services.node.engine import SupervisedEngine, open_engine
from services.node.launch import EngineSettings, Launch
from tests.fakes.engine_channels import channel_to
from tests.fakes.salted_engine import application

MODEL = "m"
PATIENCE_SECONDS = 30.0


@pytest.mark.parametrize(
    "endpoint", [endpoint for endpoint in DEFINED if endpoint.runs_model], ids=lambda one: one.path
)
async def test_a_salt_is_believed_to_be_read_where_one_that_is_none_is_refused(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    async with channel_to(tmp_path, application([endpoint.path])) as channel:
        await channel.require_salted(endpoint, MODEL)
        others = [other for other in DEFINED if other.runs_model and other != endpoint]
        for other in others:
            with pytest.raises(SaltIgnored) as ignored:
                await channel.require_salted(other, MODEL)
            assert ignored.value.reason == "SALT_IGNORED"


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_what_is_no_refusal_of_the_salt_shows_nothing(tmp_path: Path, status: int) -> None:
    """An engine that fails for a moment is asked once more."""
    async with channel_to(tmp_path, application([CHAT.path], (status, 422))) as channel:
        with pytest.raises(EngineUnavailable, match=f"with status {status}"):
            await channel.require_salted(CHAT, MODEL)
        await channel.require_salted(CHAT, MODEL)


@asynccontextmanager
async def engine(
    folder: Path,
    endpoints: Collection[Endpoint],
    salted: list[Endpoint],
    *more: str,
    start_seconds: float = 600.0,
) -> AsyncIterator[SupervisedEngine]:
    weights = folder / "model"
    weights.write_bytes(b"weights")
    arguments = [*more, *(part for endpoint in salted for part in ("--salted", endpoint.path))]
    launch = Launch(
        name="salted",
        weights=weights,
        command=(sys.executable, "-m", "tests.fakes.salted_engine", "--model", WEIGHTS, *arguments, "--uds", SOCKET),
        arguments=(),
        environment={},
        key_variable="TEST_ENGINE_KEY",
        endpoints=frozenset(endpoints),
        salted=True,
    )
    settings = EngineSettings(model=MODEL, start_seconds=start_seconds)
    async with open_engine(settings, launch, await measure(weights), folder) as running:
        yield running


async def test_an_engine_that_reads_a_salt_wherever_it_is_asked_is_ready(tmp_path: Path) -> None:
    """Counting tokens looks into no cache."""
    asked = [CHAT, COMPLETIONS, MESSAGES, COUNT_TOKENS, RESPONSES]
    async with engine(tmp_path, asked, [CHAT, COMPLETIONS, MESSAGES, RESPONSES]) as running:
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)


async def assert_not_served(engine: SupervisedEngine) -> None:
    assert not engine.ready
    with pytest.raises(EngineUnavailable):
        async with engine.post(CHAT, b"{}", 1.0):
            pass


async def test_an_engine_that_reads_none_at_one_of_them_is_never_ready(tmp_path: Path) -> None:
    async with engine(tmp_path, [CHAT, COMPLETIONS, MESSAGES], [CHAT, COMPLETIONS]) as running:
        await asyncio.wait_for(running.until_found_unfit(), PATIENCE_SECONDS)
        await assert_not_served(running)


async def test_an_engine_that_refuses_bad_salts_and_parts_nothing_by_good_ones_is_never_ready(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with engine(tmp_path, [CHAT, COMPLETIONS], [CHAT, COMPLETIONS], "--unparted") as running:
        await asyncio.wait_for(running.until_found_unfit(), PATIENCE_SECONDS)
        await assert_not_served(running)
    assert "ENGINE_PROMPTS_SHARED" in "".join(capfd.readouterr())


async def test_embeddings_count_nothing_and_there_an_engine_is_believed_that_reads_a_salt(tmp_path: Path) -> None:
    async with engine(tmp_path, [EMBEDDINGS], [EMBEDDINGS]) as running:
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)


async def test_an_engine_that_reads_none_is_not_served_either_when_its_time_to_start_is_over(tmp_path: Path) -> None:
    async with engine(tmp_path, [CHAT], [], start_seconds=4.0) as running:
        is_ready = asyncio.create_task(running.until_ready())
        await asyncio.wait_for(running.until_found_unfit(), PATIENCE_SECONDS)
        await asyncio.wait_for(running.until_ended(), PATIENCE_SECONDS)
        assert not is_ready.done()
        is_ready.cancel()
