"""An engine that dies, hangs or has no memory left: its requests end with an error and one receipt each, the other
node's go on, and the node comes back.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.load import Client, Reply, open_client
from tests.mesh.effects import verified_receipt
from tests.mesh.https import Https
from tests.mesh.nodes import FIRST, AnotherNode, another_node, question, session_of
from tests.mesh.patience import until
from tests.mesh.running import RunningMesh, short_folder

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]

SILENT_SECONDS = 6.0
SPARE_BYTES = 8 << 20
_LONG_TOKENS = 1900
_SHORT_TOKENS = 150


@pytest.fixture(scope="module")
def node(mesh: RunningMesh, https_of_module: Https) -> Iterator[AnotherNode]:
    with short_folder() as folder, another_node(mesh, https_of_module, folder, silent_seconds=SILENT_SECONDS) as found:
        yield found


@pytest.fixture(scope="module")
def https_of_module(mesh: RunningMesh) -> Https:
    described = mesh.mesh
    return Https(described["router_url"], described["router_ca"], described["api_key"])


def pinned(node: AnotherNode, instance: str, **members: object) -> bytes:
    session = session_of(node.https, instance)
    assert session is not None
    return question(node.mesh, session, **members)


@asynccontextmanager
async def streaming(client: Client, request: bytes) -> AsyncIterator[Reply]:
    """A stream that has begun; the block ends once the stream has."""
    reply = Reply(stream=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.follow(request, reply))
        async with asyncio.timeout(60):
            await reply.begun.wait()
        yield reply


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def hang(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("fault", [kill, hang], ids=["dies", "hangs"])
async def test_a_stream_whose_engine_fails_ends_with_an_error_and_one_receipt(
    mesh: RunningMesh, node: AnotherNode, fault: Callable[[int], None]
) -> None:
    former = node.engine
    assert former is not None
    long = pinned(node, node.instance, max_tokens=_LONG_TOKENS, stream=True, ignore_eos=True)
    others = pinned(node, FIRST, max_tokens=_SHORT_TOKENS, stream=True, ignore_eos=True)
    async with open_client(mesh.mesh) as client:
        async with streaming(client, others) as untouched, streaming(client, long) as broken:
            fault(former)
        assert (broken.status, broken.error_type) == (200, "upstream_error")
        assert (untouched.trouble, untouched.error_type, untouched.is_answer) == (None, None, True)
        with short_folder() as folder:
            events = await verified_receipt(mesh, client, long, broken, folder)
        assert events["teemesh.abort"]["reason"] == "upstream_failed"
        with short_folder() as folder:
            assert "teemesh.abort" not in await verified_receipt(mesh, client, others, untouched, folder)
    await asyncio.to_thread(until, lambda: node.engine not in (None, former) and node.serves(), node.log)


async def test_a_hanging_engine_keeps_nobody_waiting_whose_request_another_node_may_serve(
    mesh: RunningMesh, node: AnotherNode
) -> None:
    """Its answers are not streamed, so nothing of them was given: the router asks the other node."""
    former = node.engine
    assert former is not None
    free = json.loads(pinned(node, FIRST, max_tokens=2))
    del free["provider"]
    hang(former)
    async with open_client(mesh.mesh) as client:
        replies = await asyncio.gather(
            *(client.follow(json.dumps({**free, "seed": seed}).encode(), Reply(stream=False)) for seed in range(6))
        )
    assert [reply.status for reply in replies] == [200] * len(replies)
    await asyncio.to_thread(until, lambda: node.engine not in (None, former) and node.serves(), node.log)


async def test_what_an_engine_has_no_memory_for_is_an_error_with_one_receipt(
    mesh: RunningMesh, node: AnotherNode
) -> None:
    engine = node.engine
    assert engine is not None
    _, hard = resource.prlimit(engine, resource.RLIMIT_DATA)
    resource.prlimit(engine, resource.RLIMIT_DATA, (data_bytes(engine) + SPARE_BYTES, hard))
    asked = json.loads(pinned(node, node.instance))
    # The engine needs some 300 MB for it.
    large = json.dumps({"model": asked["model"], "provider": asked["provider"], "input": "a " * 1500}).encode()
    async with open_client(mesh.mesh) as client:
        reply = await client.follow(large, Reply(stream=False), "/v1/embeddings")
        assert (reply.status, reply.error_type) == (502, "upstream_error")
        with short_folder() as folder:
            events = await verified_receipt(mesh, client, large, reply, folder)
    own = json.loads(events["teemesh.node"]["receipt"])
    (generated,) = (event for event in own["event_log"] if event["type"] == "teemesh.generation")
    assert json.loads(generated["gpus"])
    await asyncio.to_thread(until, node.serves, node.log)


def data_bytes(pid: int) -> int:
    """What RLIMIT_DATA counts (proc(5), VmData)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("VmData:")]
    return int(kilobytes) * 1024
