"""The verifier's own client against the real endpoint."""

from __future__ import annotations

import socket

import dcap_qvl
import httpx
import pytest

from services.devtee.machine import Machine, VirtualTd
from services.devtee.vendors import VendorsUnavailable, serving_vendors


async def test_fetched_collateral_verifies(machine: Machine, td: VirtualTd, now: int) -> None:
    quote = td.quote(b"x")
    async with serving_vendors("127.0.0.1", 0, machine, lambda: now) as url:
        collateral = await dcap_qvl.get_collateral(url, quote)
    assert dcap_qvl.verify_with_root_ca(quote, collateral, machine.vendor_root, now).status == "UpToDate"


async def test_expired_collateral_is_never_served(machine: Machine, td: VirtualTd, now: int) -> None:
    quote = td.quote(b"x")
    clock = [now]
    async with serving_vendors("127.0.0.1", 0, machine, lambda: clock[0]) as url:
        await dcap_qvl.get_collateral(url, quote)
        clock[0] += 90 * 24 * 3600
        collateral = await dcap_qvl.get_collateral(url, quote)
    assert dcap_qvl.verify_with_root_ca(quote, collateral, machine.vendor_root, clock[0]).status == "UpToDate"


@pytest.mark.parametrize(
    "path",
    [
        "sgx/certification/v4/pckcrl?ca=processor&encoding=der",
        "tdx/certification/v4/tcb?fmspc=000000000000",
        "tdx/certification/v4/other",
    ],
)
async def test_another_machines_collateral_is_not_found(machine: Machine, now: int, path: str) -> None:
    async with serving_vendors("127.0.0.1", 0, machine, lambda: now) as url, httpx.AsyncClient(timeout=30) as client:
        assert (await client.get(f"{url}/{path}")).status_code == 404


async def test_a_taken_port_is_refused(machine: Machine, now: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(VendorsUnavailable, match="cannot listen"):
        async with serving_vendors("127.0.0.1", taken.getsockname()[1], machine, lambda: now):
            pass
