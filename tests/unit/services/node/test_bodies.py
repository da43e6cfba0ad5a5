"""What takes long to read is read beside the loop, of each tenant in its turn, and within its request's time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from libs.aci import endpoints
from libs.aci.endpoints import Endpoint
from libs.aci.json_values import FEW_VALUES
from libs.turns.line import Line
from services.node.asked import Asked, read_body
from services.node.bodies import Bodies, BodyReadTooLate
from services.node.refused import Refusal

PATIENCE_SECONDS = 20.0
SMALL = b'{"model":"m","input":"Hi"}'
LARGE = b'{"model":"m","input":[' + b"1," * FEW_VALUES + b"1]}"


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(partial(read_body, served=frozenset({"m"})))


async def read(bodies: Bodies, body: bytes, tenant_id: str = "a", seconds: float = PATIENCE_SECONDS) -> Asked | Refusal:
    return await bodies.read(tenant_id, body, endpoints.EMBEDDINGS, seconds)


@contextmanager
def busy(line: Line) -> Iterator[asyncio.Future[bool]]:
    """Keep a line's thread busy meanwhile. It is, when the loop runs again."""
    go_on = threading.Event()
    holding = asyncio.ensure_future(line.read("other", PATIENCE_SECONDS, go_on.wait))
    try:
        yield holding
    finally:
        go_on.set()


async def test_however_many_large_bodies_one_tenant_sends_anothers_is_read_in_its_turn(bodies: Bodies) -> None:
    order: list[str] = []

    async def note(tenant_id: str) -> None:
        assert isinstance(await read(bodies, LARGE, tenant_id), Asked)
        order.append(tenant_id)

    with busy(bodies._large) as holding:
        await asyncio.sleep(0)
        tasks = [asyncio.ensure_future(note(tenant_id)) for tenant_id in ("a", "a", "a", "b", "c")]
        await asyncio.sleep(0)
        assert isinstance(await read(bodies, SMALL), Asked)
        assert not order
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(holding, *tasks)
    assert order == ["a", "b", "c", "a", "a"]


async def test_nobody_waits_longer_than_its_requests_time(bodies: Bodies) -> None:
    with busy(bodies._large) as holding:
        await asyncio.sleep(0)
        with pytest.raises(BodyReadTooLate) as refused:
            await read(bodies, LARGE, seconds=0.0)
    assert refused.value.reason == "BODY_READ_TOO_LATE"
    await holding
    assert isinstance(await read(bodies, LARGE), Asked)


async def test_what_is_wrong_with_a_body_is_said_the_same_wherever_it_is_read(bodies: Bodies) -> None:
    said = [await read(bodies, body.replace(b'"m"', b'"other"')) for body in (SMALL, LARGE)]
    assert [isinstance(each, Refusal) and each.status for each in said] == [404, 404]
    assert said[0] == said[1]


HI = [{"role": "user", "content": "Hi"}]
WITH_SCHEMAS: list[tuple[Endpoint, dict[str, Any]]] = [
    (endpoints.CHAT, {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}]}),
    (endpoints.CHAT, {"messages": HI, "functions": [{"name": "f", "parameters": {}}]}),
    (endpoints.CHAT, {"messages": HI, "response_format": {"type": "json_object"}}),
    (endpoints.MESSAGES, {"messages": HI, "max_tokens": 1, "output_config": {"format": {}}}),
    (endpoints.RESPONSES, {"input": "Hi", "text": {"format": {"type": "text"}}}),
]


@pytest.mark.parametrize(("endpoint", "members"), WITH_SCHEMAS, ids=[list(members)[-1] for _, members in WITH_SCHEMAS])
@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
async def test_a_schema_holds_up_neither_the_loop_nor_those_without_one(
    bodies: Bodies, endpoint: Endpoint, members: dict[str, Any], escaped: bool
) -> None:
    """However its member's name is written; and it does not wait for what has many values."""
    body = json.dumps({"model": "m", **members})
    if escaped:
        name = list(members)[-1]
        body = body.replace(f'"{name}": ', f'"\\u{ord(name[0]):04x}{name[1:]}": ')
    with busy(bodies._schemas) as holding:
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(bodies.read("a", body.encode(), endpoint, PATIENCE_SECONDS))
        assert isinstance(await read(bodies, SMALL), Asked)
        assert isinstance(await read(bodies, LARGE), Asked)
        assert not waiting.done()
    with busy(bodies._large):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await holding
            assert isinstance(await waiting, Asked)
