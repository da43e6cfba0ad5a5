"""A real PCCS endpoint behind a proxy that counts, delays and changes what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
from aiohttp import web

from services.attestation.collateral import CollateralCache
from services.attestation.shelf import Shelf
from services.devtee.collateral import CollateralShape, make_collateral
from services.devtee.machine import Machine
from services.devtee.pki import VendorPki
from services.devtee.vendors import serving_vendors
from tests.fakes.joined_mesh import Clock

HOUR = 3600
PATIENCE_SECONDS = 20.0
LONGEST_BACKOFF = 300


@dataclass(frozen=True, slots=True)
class Reply:
    """What the PCCS says; None where nothing is sent at all."""

    status: int
    body: bytes
    headers: dict[str, str]


@dataclass(slots=True)
class Pccs:
    """A proxy before the machine's PCCS that counts, and can break, wait, or say something else."""

    url: str = ""
    behind: str = ""
    fetches: int = 0
    broken: bool = False
    change: Callable[[str, Reply], Reply] | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetched(self, count: int) -> None:
        """Wait until so many fetches have begun."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.fetches < count:
                self.asked.clear()
                await self.asked.wait()

    def handler(self, behind: httpx.AsyncClient) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            if request.path.endswith("/pckcrl"):
                self.fetches += 1
                self.asked.set()
                await self.go_on.wait()
            if self.broken:
                return web.Response(status=503)
            answer = await behind.get(str(request.rel_url))
            headers = {name: value for name, value in answer.headers.items() if name.lower().endswith("issuer-chain")}
            reply = Reply(answer.status_code, answer.content, headers)
            if self.change is not None:
                reply = self.change(request.path, reply)
            return web.Response(body=reply.body, headers=reply.headers, status=reply.status)

        return handle


@asynccontextmanager
async def proxied(machine: Machine, clock: Clock) -> AsyncIterator[Pccs]:
    pccs = Pccs()
    pccs.go_on.set()
    async with (
        serving_vendors("127.0.0.1", 0, machine, lambda: int(clock.now)) as url,
        httpx.AsyncClient(base_url=url) as behind,
    ):
        application = web.Application()
        application.router.add_get("/{path:.*}", pccs.handler(behind))
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            pccs.url, pccs.behind = f"http://127.0.0.1:{runner.addresses[0][1]}", url
            yield pccs
        finally:
            pccs.go_on.set()
            await runner.cleanup()


def only(path: str, change: Callable[[Reply], Reply]) -> Callable[[str, Reply], Reply]:
    return lambda asked, reply: change(reply) if asked.endswith(path) else reply


def serving(machine: Machine, shape: CollateralShape) -> Callable[[str, Reply], Reply]:
    """A PCCS whose statements are well signed, and of this shape."""
    given = make_collateral(machine.pki, shape)

    def change(path: str, reply: Reply) -> Reply:
        if path.endswith("/pckcrl"):
            return replace(reply, body=given.pck_crl)
        if path.endswith("/rootcacrl"):
            return replace(reply, body=given.root_ca_crl)
        name, text, signature = (
            ("tcbInfo", given.tcb_info, given.tcb_info_signature)
            if path.endswith("/tcb")
            else ("enclaveIdentity", given.qe_identity, given.qe_identity_signature)
        )
        return replace(reply, body=f'{{"{name}":{text},"signature":"{signature.hex()}"}}'.encode())

    return change


def signed_identity(text: str, pki: VendorPki) -> bytes:
    signature = pki.tcb_signing.sign_raw(text.encode()).hex()
    return f'{{"enclaveIdentity":{text},"signature":"{signature}"}}'.encode()


def pem_parts(chain: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [part + end for part in chain.split(end) if part.strip()]


def quoted(chain: str) -> str:
    return str(httpx.QueryParams({"chain": chain})).removeprefix("chain=").replace("+", "%20")


async def restarted(pccs: Pccs, clock: Clock, folder: Path) -> CollateralCache:
    cache = CollateralCache(pccs.url, 10.0, clock, shelf=Shelf(folder))
    await cache.load()
    return cache
