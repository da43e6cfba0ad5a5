"""What an engine says of its cache: its own words, over its own socket, or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.node.channel import EngineChannel, EngineUnavailable
from services.node.metrics import permille_of

GAUGE = "vllm:kv_cache_usage_perc"
TEXT = f"""# HELP {GAUGE} KV-cache usage. 1 means 100 percent usage.
# TYPE {GAUGE} gauge
{GAUGE}{{engine="0",model_name="a }} b"}} 0.125
vllm:num_requests_running{{engine="0"}} 3.0
"""


def test_a_share_is_told_in_thousandths() -> None:
    assert permille_of(TEXT, GAUGE) == 125
    assert permille_of(f"{GAUGE} 1.0 1700000000", GAUGE) == 1000
    assert permille_of(f"{GAUGE} 0", GAUGE) == 0


def test_of_several_engines_the_fullest_counts() -> None:
    assert permille_of(f'{GAUGE}{{engine="0"}} 0.1\n{GAUGE}{{engine="1"}} 0.9\n', GAUGE) == 900


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vllm:other 0.5",
        f"{GAUGE}_total 0.5",
        f"# {GAUGE} 0.5",
        f"{GAUGE} 1.5",
        f"{GAUGE} -0.1",
        f"{GAUGE} NaN",
        f"{GAUGE} +Inf",
        f"{GAUGE} much",
        f"{GAUGE} ",
        f'{GAUGE}{{engine="0"}} 0.1\n{GAUGE}{{engine="1"}} much\n',
    ],
)
def test_what_is_no_share_is_not_known(text: str) -> None:
    assert permille_of(text, GAUGE) is None


@asynccontextmanager
async def engine_at(socket: Path, status: int) -> AsyncIterator[EngineChannel]:
    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=TEXT, status=status)

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        async with EngineChannel(socket, "key") as channel:
            yield channel
    finally:
        await runner.cleanup()


async def test_an_engine_is_asked_over_its_socket(tmp_path: Path) -> None:
    async with engine_at(tmp_path / "engine.sock", 200) as channel:
        assert await channel.permille(GAUGE) == 125


async def test_an_engine_that_does_not_say_is_not_known(tmp_path: Path) -> None:
    async with engine_at(tmp_path / "engine.sock", 404) as channel:
        assert await channel.permille(GAUGE) is None


async def test_an_engine_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with EngineChannel(tmp_path / "nobody.sock", "key") as channel:
        with pytest.raises(EngineUnavailable):
            await channel.permille(GAUGE)
