"""What an engine says of its cache: its own words, over its own socket, or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from services.node.channel import EngineChannel
from services.node.metrics import permille_of, totals_of
from services.node.readings import Readings
from tests.fakes.engine_channels import channel_to

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


WORK = f"""{GAUGE}{{engine="0"}} 0.125
vllm:generation_tokens_total{{engine="0"}} 3.0
vllm:generation_tokens_total{{engine="1"}} 4.0
vllm:generation_tokens_total_created{{engine="0"}} 1.7e+09
vllm:prompt_tokens_total NaN
"""


def test_totals_are_those_that_are_there() -> None:
    names = ["vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:other", GAUGE]
    assert totals_of(WORK, names) == {"vllm:generation_tokens_total": 7.0, GAUGE: 0.125}


@dataclass
class Teller:
    """What an engine says when it is asked; nothing: it has no metrics."""

    text: str | None = TEXT


@asynccontextmanager
async def engine_at(folder: Path, teller: Teller) -> AsyncIterator[EngineChannel]:
    async def metrics(request: web.Request) -> web.Response:
        return web.Response(status=404) if teller.text is None else web.Response(text=teller.text)

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    async with channel_to(folder, application) as channel:
        yield channel


async def test_an_engine_is_asked_over_its_socket(tmp_path: Path) -> None:
    async with engine_at(tmp_path, Teller()) as channel:
        readings = Readings(channel, GAUGE, ())
        await readings.read()
        assert (readings.kv_cache_permille, readings.tell, readings.tell_work) == (125, True, False)


async def test_an_engine_that_does_not_say_is_not_known(tmp_path: Path) -> None:
    async with engine_at(tmp_path, Teller(None)) as channel:
        readings = Readings(channel, GAUGE, ["vllm:generation_tokens_total"])
        await readings.read()
        assert (readings.kv_cache_permille, readings.tell_work) == (None, False)


async def test_an_engine_that_is_away_says_nothing(tmp_path: Path) -> None:
    teller = Teller()
    async with engine_at(tmp_path, teller) as channel:
        readings = Readings(channel, GAUGE, ())
        await readings.read()
    async with EngineChannel(tmp_path / "nobody.sock", "key") as channel:
        gone = Readings(channel, GAUGE, ())
        await gone.read()
        assert gone.kv_cache_permille is None


async def test_work_that_goes_on_is_heard_and_nothing_else_is(tmp_path: Path) -> None:
    def generated(tokens: float) -> str:
        return f'vllm:generation_tokens_total{{engine="0"}} {tokens}\nprocess_cpu_seconds_total {tokens + beyond}\n'

    beyond, teller = 0.0, Teller(None)
    async with engine_at(tmp_path, teller) as channel:
        readings = Readings(channel, None, ["vllm:generation_tokens_total"])
        heard = []
        for teller.text in (generated(5), generated(5), generated(6), None, generated(6), generated(7)):
            beyond += 1
            await readings.read()
            heard.append(channel.signs_of_life)
        assert heard == [0, 0, 1, 1, 1, 2]
        assert readings.tell_work
        readings.forget()
        teller.text = generated(1)
        await readings.read()
        assert channel.signs_of_life == 2
