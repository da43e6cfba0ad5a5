"""GPU tokens over real HTTP: the development vendor's service, and servers that are down, wrong or hostile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web
from teemesh.attestation.v1 import collateral_pb2

from libs.errors import Code, MeshError
from libs.tee.nvidia.chain import MAX_CHAIN_BYTES
from libs.tee.nvidia.collected import Collected, read_collected
from libs.tee.nvidia.evidence import RawReport
from libs.tee.nvidia.report import MAX_REPORT_BYTES
from services.attestation.__main__ import collateral_servicer
from services.attestation.collateral import CollateralCache
from services.attestation.config import Config
from services.attestation.gpu_tokens import GpuTokens, GpuTokensBusy, GpuTokensUnavailable
from services.devtee.machine import Machine
from services.devtee.nras import Nras, read_request
from services.devtee.vendors import serving_vendors

NOW = 1_790_000_000
NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(NOW)


@pytest.fixture(scope="module")
def collected(machine: Machine) -> Collected:
    return read_collected(machine.gpus.evidence(NONCE))


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(attest: Answer, keys: Answer | None = None) -> AsyncIterator[str]:
    """A token service of our making, that publishes no keys unless it is told how."""
    application = web.Application()
    application.router.add_post("/v4/attest/gpu", attest)
    if keys is not None:
        application.router.add_get("/.well-known/jwks.json", keys)
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
        signed = await GpuTokens(url + "/", 5).tokens(NONCE, collected.architecture, collected.reports)
    assert list(signed.eat.submodules) == ["GPU-0"]
    nras = machine.gpus.nras
    assert signed.keys == {nras.key_id: nras.signing.chain}


class Service:
    """The development token service, its key set counted and its key changed at will."""

    def __init__(self, nras: Nras) -> None:
        self.nras = nras
        self.published: dict[str, Any] | None = None
        """Instead of its own key set."""
        self.key_sets_asked_for = 0

    async def attest(self, request: web.Request) -> web.Response:
        posted, nonce = read_request(await request.read())
        return web.json_response(self.nras.attest(posted, nonce, NOW))

    async def keys(self, _request: web.Request) -> web.Response:
        self.key_sets_asked_for += 1
        return web.json_response(self.nras.jwks() if self.published is None else self.published)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def service(machine: Machine) -> Service:
    return Service(machine.gpus.nras)


async def test_keys_are_asked_for_again_after_ten_minutes(service: Service, collected: Collected) -> None:
    clock = Clock()
    async with answering(service.attest, service.keys) as url:
        tokens = GpuTokens(url, 5, clock)
        for seconds, asked in ((0, 1), (599, 1), (600, 2), (601, 2)):
            clock.now = seconds
            await tokens.tokens(NONCE, collected.architecture, collected.reports)
            assert service.key_sets_asked_for == asked


async def test_new_key_is_found_at_once(service: Service, collected: Collected) -> None:
    async with answering(service.attest, service.keys) as url:
        tokens = GpuTokens(url, 5, Clock())
        before = await tokens.tokens(NONCE, collected.architecture, collected.reports)
        service.nras = service.nras.rotated(NOW + 1)
        after = await tokens.tokens(NONCE, collected.architecture, collected.reports)
    assert before.keys.keys() != after.keys.keys()
    assert after.keys == {service.nras.key_id: service.nras.signing.chain}
    assert service.key_sets_asked_for == 2


async def test_key_that_is_not_published_is_asked_for_once(service: Service, collected: Collected) -> None:
    async with answering(service.attest, service.keys) as url:
        tokens = GpuTokens(url, 5, Clock())
        await tokens.tokens(NONCE, collected.architecture, collected.reports)
        service.published = service.nras.jwks()
        service.nras = service.nras.rotated(NOW + 1)
        with pytest.raises(MeshError, match="does not publish") as refused:
            await tokens.tokens(NONCE, collected.architecture, collected.reports)
    assert refused.value.reason == "GPU_TOKENS_UNAVAILABLE"
    assert service.key_sets_asked_for == 2


async def test_key_that_is_not_certified_comes_without_certificates(service: Service, collected: Collected) -> None:
    (key,) = service.nras.jwks()["keys"]
    service.published = {"keys": [{name: value for name, value in key.items() if name != "x5c"}]}
    async with answering(service.attest, service.keys) as url:
        signed = await GpuTokens(url, 5).tokens(NONCE, collected.architecture, collected.reports)
    assert signed.keys == {}


async def test_tokens_that_do_not_name_their_key_are_unavailable(service: Service, collected: Collected) -> None:
    async def nameless(_request: web.Request) -> web.Response:
        token = "eyJhbGciOiJFUzM4NCJ9.e30.AA"  # Header {"alg": "ES384"}, no claims.
        return web.json_response([["JWT", token], {"GPU-0": token}])

    async with answering(nameless, service.keys) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"


async def test_verdict_that_is_too_long_is_unavailable(service: Service, collected: Collected) -> None:
    async def padded(request: web.Request) -> web.Response:
        good = await service.attest(request)
        assert good.text is not None
        return web.Response(text=good.text + " " * 600_000)

    async with answering(padded, service.keys) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"


async def test_service_without_a_key_set_is_unavailable(service: Service, collected: Collected) -> None:
    async with answering(service.attest) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b"{}"), (200, b""), (200, b"garbage"), (200, b'{"keys":[]}'), (200, b"[" * 600_000), (304, b"")],
)
async def test_key_set_that_is_none_is_unavailable(
    service: Service, collected: Collected, status: int, body: bytes
) -> None:
    async def keys(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    async with answering(service.attest, keys) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"


async def test_key_set_without_an_end_is_given_up(service: Service, collected: Collected) -> None:
    async def keys(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))

    async with answering(service.attest, keys) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"


async def test_key_set_that_does_not_come_is_given_up(service: Service, collected: Collected) -> None:
    async def keys(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(service.attest, keys) as url:
        assert await refusal(url, collected, timeout_seconds=0.5) == "GPU_TOKENS_UNAVAILABLE"


async def test_what_the_vendor_does_not_accept_is_refused(machine: Machine, collected: Collected) -> None:
    async with serving_vendors("127.0.0.1", 0, Machine.create(NOW), lambda: NOW) as url:
        assert await refusal(url, collected) == "GPU_TOKENS_REFUSED"


async def test_no_more_and_no_less_than_a_machines_gpus_are_asked_about(collected: Collected) -> None:
    assert await refusal("http://127.0.0.1:1", collected, nonce=NONCE[1:]) == "GPU_REPORTS_MALFORMED"
    assert await refusal("http://127.0.0.1:1", Collected("HOPPER", ())) == "GPU_REPORTS_MALFORMED"
    assert await refusal("http://127.0.0.1:1", Collected("HOPPER", collected.reports * 17)) == "GPU_REPORTS_MALFORMED"


@pytest.mark.parametrize("architecture", ["", "hopper", "HOPPER\n", "X" * 33, 'HOPPER"'])
async def test_an_architecture_that_no_vendor_names_is_not_asked_about(collected: Collected, architecture: str) -> None:
    shown = Collected(architecture, collected.reports)
    assert await refusal("http://127.0.0.1:1", shown) == "GPU_REPORTS_MALFORMED"


@pytest.mark.parametrize(
    ("report", "chain", "reason"),
    [
        (bytes(MAX_REPORT_BYTES + 1), "c", "GPU_REPORTS_MALFORMED"),
        (b"r", "c" * (MAX_CHAIN_BYTES + 1), "GPU_REPORTS_MALFORMED"),
        (b"r", "\u00e9" * (MAX_CHAIN_BYTES // 2 + 1), "GPU_REPORTS_MALFORMED"),
        (bytes(MAX_REPORT_BYTES), "c" * MAX_CHAIN_BYTES, "GPU_TOKENS_UNAVAILABLE"),
    ],
)
async def test_a_report_or_chain_that_no_gpu_gives_is_not_sent_on(report: bytes, chain: str, reason: str) -> None:
    shown = Collected("HOPPER", (RawReport(report, chain),))
    assert await refusal("http://127.0.0.1:1", shown) == reason


async def test_a_service_that_sends_elsewhere_is_not_followed(service: Service, collected: Collected) -> None:
    async with answering(service.attest, service.keys) as elsewhere:

        async def away(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": elsewhere + request.path})

        for attest, keys in ((away, service.keys), (service.attest, away)):
            async with answering(attest, keys) as url:
                assert await refusal(url, collected) == "GPU_TOKENS_UNAVAILABLE"
    assert service.key_sets_asked_for == 0


async def test_a_key_set_that_did_not_come_is_not_asked_for_again_at_once(
    service: Service, collected: Collected
) -> None:
    clock, asked = Clock(), 0

    async def keys(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=500)

    async with answering(service.attest, keys) as url:
        tokens = GpuTokens(url, 5, clock)
        for seconds, times in ((0, 1), (4.9, 1), (5, 2)):
            clock.now = seconds
            with pytest.raises(MeshError, match="HTTP 500"):
                await tokens.tokens(NONCE, collected.architecture, collected.reports)
            assert asked == times


async def test_those_who_wait_for_a_key_set_wait_no_longer_than_their_own_time(
    service: Service, collected: Collected
) -> None:
    asked = 0

    async def keys(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(service.attest, keys) as url:
        tokens = GpuTokens(url, 0.4, Clock())
        calls = [tokens.tokens(NONCE, collected.architecture, collected.reports) for _ in range(4)]
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {GpuTokensUnavailable}
    assert asked == 1


async def test_only_a_few_requests_are_at_the_vendor_at_once(service: Service, collected: Collected) -> None:
    there, most, go_on, full = 0, 0, asyncio.Event(), asyncio.Event()

    async def attest(request: web.Request) -> web.Response:
        nonlocal there, most
        there += 1
        most = max(most, there)
        if there == 4:
            full.set()
        await go_on.wait()
        there -= 1
        return await service.attest(request)

    async with answering(attest, service.keys) as url:
        tokens = GpuTokens(url, 20, Clock())
        calls = [
            asyncio.create_task(tokens.tokens(NONCE, collected.architecture, collected.reports)) for _ in range(10)
        ]
        await full.wait()
        go_on.set()
        await asyncio.gather(*calls)
    assert most == 4


async def test_one_who_finds_no_room_gives_up_within_its_own_time(collected: Collected) -> None:
    asked = 0

    async def attest(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(attest) as url:
        tokens = GpuTokens(url, 0.4, Clock())
        calls = [tokens.tokens(NONCE, collected.architecture, collected.reports) for _ in range(12)]
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {GpuTokensUnavailable}
    assert asked < 12


async def test_one_who_would_be_one_too_many_to_wait_is_refused_at_once(service: Service, collected: Collected) -> None:
    go_on = asyncio.Event()

    async def attest(request: web.Request) -> web.Response:
        await go_on.wait()
        return await service.attest(request)

    async with answering(attest, service.keys) as url:
        tokens = GpuTokens(url, 20, Clock())
        calls = [
            asyncio.create_task(tokens.tokens(NONCE, collected.architecture, collected.reports)) for _ in range(36)
        ]
        await asyncio.sleep(0)
        calls.pop().cancel()  # One who gives up makes room.
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(tokens.tokens(NONCE, collected.architecture, collected.reports)))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            with pytest.raises(GpuTokensBusy) as refused:
                await tokens.tokens(NONCE, collected.architecture, collected.reports)
        assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "GPU_TOKENS_BUSY")
        go_on.set()
        await asyncio.gather(*calls)
        await tokens.tokens(NONCE, collected.architecture, collected.reports)


async def test_members_do_not_wait_behind_callers_of_the_other_listener(service: Service, collected: Collected) -> None:
    stuck, go_on = asyncio.Event(), asyncio.Event()

    async def attest(request: web.Request) -> web.Response:
        _, nonce = read_request(await request.read())
        if nonce != NONCE:
            stuck.set()
            await go_on.wait()
        return await service.attest(request)

    def request(nonce: bytes) -> collateral_pb2.GetGpuTokensRequest:
        reports = [collateral_pb2.GpuReport(report=r.report, certificate_chain=r.certificate_chain) for r in shown]
        return collateral_pb2.GetGpuTokensRequest(nonce=nonce, architecture=collected.architecture, reports=reports)

    context, shown = cast(Any, None), collected.reports
    async with answering(attest, service.keys) as url:
        config = Config(cast(Any, None), bootstrap_listen="", pccs_url=url, nras_url=url)
        bootstrap, inner = (collateral_servicer(config, CollateralCache(url, 5)) for _ in range(2))
        strangers = [asyncio.create_task(bootstrap.GetGpuTokens(request(bytes(32)), context)) for _ in range(36)]
        await stuck.wait()
        async with asyncio.timeout(5):
            assert (await inner.GetGpuTokens(request(NONCE), context)).tokens
        go_on.set()
        await asyncio.gather(*strangers, return_exceptions=True)


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
