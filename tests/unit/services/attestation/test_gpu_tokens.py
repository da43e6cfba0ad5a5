"""GPU tokens over real HTTP: the development vendor's service, and servers that are down, wrong or hostile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from libs.errors import MeshError
from libs.tee.nvidia.collected import Collected, read_collected
from services.attestation.gpu_tokens import GpuTokens
from services.devtee.machine import Machine
from services.devtee.vendors import serving_vendors

NOW = 1_790_000_000
NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(NOW)


@pytest.fixture(scope="module")
def collected(machine: Machine) -> Collected:
    return read_collected(machine.gpus.evidence(NONCE))


@asynccontextmanager
async def answering(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/v4/attest/gpu", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def refusal(url: str | None, collected: Collected, nonce: bytes = NONCE, timeout_seconds: float = 5) -> str:
    with pytest.raises(MeshError) as refused:
        await GpuTokens(url, timeout_seconds).tokens(nonce, collected.architecture, collected.reports)
    return refused.value.reason


async def test_the_vendors_verdict_is_returned(machine: Machine, collected: Collected) -> None:
    async with serving_vendors("127.0.0.1", 0, machine, lambda: NOW) as url:
        eat = await GpuTokens(url + "/", 5).tokens(NONCE, collected.architecture, collected.reports)
    assert list(eat.submodules) == ["GPU-0"]


async def test_what_the_vendor_does_not_accept_is_refused(machine: Machine, collected: Collected) -> None:
    async with serving_vendors("127.0.0.1", 0, Machine.create(NOW), lambda: NOW) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_REFUSED"


async def test_no_more_and_no_less_than_a_machines_gpus_are_asked_about(collected: Collected) -> None:
    assert await refusal("http://127.0.0.1:1", collected, nonce=NONCE[1:]) == "GPU_REPORTS_MALFORMED"
    assert await refusal("http://127.0.0.1:1", Collected("HOPPER", ())) == "GPU_REPORTS_MALFORMED"
    assert await refusal("http://127.0.0.1:1", Collected("HOPPER", collected.reports * 17)) == "GPU_REPORTS_MALFORMED"


async def test_a_service_that_is_not_there_is_unavailable(collected: Collected) -> None:
    assert await refusal("http://127.0.0.1:1", collected) == "GPU_TOKENS_UNAVAILABLE"
    assert await refusal(None, collected) == "GPU_TOKENS_UNAVAILABLE"


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b"{}"), (200, b"garbage"), (200, b'[["JWT",1],{}]'), (200, b"[" * 600_000), (302, b"")],
)
async def test_an_answer_that_is_none_is_unavailable(collected: Collected, status: int, body: bytes) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    async with answering(answer) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"


async def test_an_answer_without_an_end_is_given_up(collected: Collected) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))

    async with answering(answer) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"
