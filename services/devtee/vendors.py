"""The vendors' services: responsible for handing out collateral and GPU tokens over plain HTTP on loopback.

Plain HTTP is enough: each part is signed by the vendor's keys, and whoever alters one is found out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote as percent_encoded

from aiohttp import web

from libs.errors import Code, MeshError
from services.devtee.collateral import Renewed
from services.devtee.machine import Machine
from services.devtee.nras import routes as token_routes


class VendorsUnavailable(MeshError):
    """The address cannot be bound."""

    code = Code.FAILED_PRECONDITION
    reason = "VENDORS_UNAVAILABLE"


@asynccontextmanager
async def serving_vendors(host: str, port: int, machine: Machine, clock: Callable[[], int]) -> AsyncIterator[str]:
    """Serve PCCS and GPU token service until the context ends; yields the base URL of both.

    Port 0 takes a free one. Raises `VendorsUnavailable`.
    """
    runner = web.AppRunner(_application(machine, clock), access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise VendorsUnavailable(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"
    finally:
        await runner.cleanup()


def _application(machine: Machine, clock: Callable[[], int]) -> web.Application:
    pki = machine.pki
    collateral = Renewed(pki)

    async def pck_crl(request: web.Request) -> web.Response:
        if request.query.get("ca") != "platform" or request.query.get("encoding", "der") != "der":
            raise web.HTTPNotFound(text="only the platform CA's list, in DER")
        current = collateral.at(clock())
        return web.Response(
            body=current.pck_crl,
            content_type="application/pkix-crl",
            headers={"SGX-PCK-CRL-Issuer-Chain": percent_encoded(current.pck_crl_chain)},
        )

    async def root_crl(_request: web.Request) -> web.Response:
        return web.Response(text=collateral.at(clock()).root_ca_crl.hex())

    async def tcb_info(request: web.Request) -> web.Response:
        if request.query.get("fmspc", "").lower() != pki.platform.fmspc.hex():
            raise web.HTTPNotFound(text="no such machine family here")
        current = collateral.at(clock())
        return _signed(
            "tcbInfo", current.tcb_info, current.tcb_info_signature, "TCB-Info-Issuer-Chain", current.tcb_chain
        )

    async def qe_identity(_request: web.Request) -> web.Response:
        current = collateral.at(clock())
        return _signed(
            "enclaveIdentity",
            current.qe_identity,
            current.qe_identity_signature,
            "SGX-Enclave-Identity-Issuer-Chain",
            current.tcb_chain,
        )

    application = web.Application()
    application.router.add_routes(token_routes(machine.gpus.nras, clock))
    application.router.add_get("/sgx/certification/v4/pckcrl", pck_crl)
    application.router.add_get("/sgx/certification/v4/rootcacrl", root_crl)
    application.router.add_get("/tdx/certification/v4/tcb", tcb_info)
    application.router.add_get("/tdx/certification/v4/qe/identity", qe_identity)
    return application


def _signed(member: str, text: str, signature: bytes, chain_header: str, chain: str) -> web.Response:
    # The signed text goes in unchanged; parsing and writing it again could reorder it.
    return web.Response(
        text=f'{{"{member}":{text},"signature":"{signature.hex()}"}}',
        content_type="application/json",
        headers={chain_header: percent_encoded(chain)},
    )
