"""What a PCCS sends that is no collateral, or somebody else's, is a failure and costs nothing that is held."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from libs.tee import tdx
from services.attestation.collateral import CollateralCache
from services.attestation.pccs import CollateralUnavailable
from services.devtee.collateral import CollateralShape, make_collateral
from services.devtee.machine import Machine
from services.devtee.pki import VendorPki
from tests.fakes.joined_mesh import Clock
from tests.fakes.proxied_pccs import HOUR, Pccs, Reply, only, pem_parts, quoted, serving, signed_identity


def body(change: Callable[[bytes], bytes]) -> Callable[[Reply], Reply]:
    return lambda reply: replace(reply, body=change(reply.body))


def member(name: str, **changes: Any) -> Callable[[Reply], Reply]:
    def change(data: bytes) -> bytes:
        value = json.loads(data)
        value[name].update(changes)
        return json.dumps(value).encode()

    return body(change)


def no_headers(reply: Reply) -> Reply:
    return replace(reply, headers={})


def chain(text: str) -> Callable[[Reply], Reply]:
    return lambda reply: replace(reply, headers=dict.fromkeys(reply.headers, text))


def compressed(reply: Reply) -> Reply:
    return replace(reply, body=gzip.compress(reply.body), headers={**reply.headers, "Content-Encoding": "gzip"})


GARBAGE: dict[str, Callable[[str, Reply], Reply]] = {
    "not found": only("/tcb", lambda reply: replace(reply, status=404)),
    "compressed": only("/tcb", compressed),
    "no JSON": only("/tcb", body(lambda data: data[:-1])),
    "another object": only("/tcb", body(lambda data: b"[]")),
    "no signature": only("/tcb", body(lambda data: data.replace(b'"signature"', b'"signed"'))),
    "a signature of another form": only("/tcb", body(lambda data: data[:-4] + b'zz"}')),
    "deeper than anybody reads": only("/tcb", body(lambda data: b'{"tcbInfo":' + b"[" * 100_000)),
    "no chain": only("/tcb", no_headers),
    "a chain that is none": only("/tcb", chain("-----BEGIN%20CERTIFICATE-----")),
    "a chain without certificates": only("/pckcrl", chain("x")),
    "a chain that is no text": only("/tcb", chain("%FF")),
    "a changed TCB info": only("/tcb", member("tcbInfo", tcbEvaluationDataNumber=99)),
    "a changed identity": only("/qe/identity", member("enclaveIdentity", isvprodid=3)),
    "another enclave's identity": only("/qe/identity", member("enclaveIdentity", id="QE")),
    "no date": only("/qe/identity", member("enclaveIdentity", nextUpdate="tomorrow")),
    "no CRL": only("/pckcrl", body(lambda data: b"no CRL")),
    "a changed CRL": only("/pckcrl", body(lambda data: data[:-1] + bytes([data[-1] ^ 1]))),
    "a changed root CRL": only("/rootcacrl", body(lambda data: data[:-2] + (b"00" if data[-2:] != b"00" else b"01"))),
    "huge": only("/tcb", body(lambda data: data + b" " * (256 * 1024))),
    "a huge header": only("/tcb", chain("a" * 40_000)),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_is_a_failure_and_what_was_held_goes_on(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock, garbage: Callable[[str, Reply], Reply]
) -> None:
    pccs.change = garbage
    with pytest.raises(CollateralUnavailable):
        await cache.held(quote)
    pccs.change = None
    clock.now += 3
    held = await cache.held(quote)
    pccs.change = garbage
    clock.now += 2 * HOUR
    await cache.renew()
    assert pccs.fetches == 3
    assert await cache.held(quote) is held


async def test_statements_about_another_platform_are_a_failure(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock
) -> None:
    pccs.change = serving(machine, CollateralShape(int(clock.now), fmspc=bytes(6)))
    with pytest.raises(CollateralUnavailable, match="another platform"):
        await cache.held(quote)


@pytest.mark.parametrize("issued", [-40 * 86400, 86400])
async def test_statements_that_are_not_valid_now_are_a_failure(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, issued: int
) -> None:
    pccs.change = serving(machine, CollateralShape(int(clock.now) + issued))
    with pytest.raises(CollateralUnavailable, match="not valid now"):
        await cache.held(quote)


async def test_a_pccs_that_sends_elsewhere_is_not_followed(cache: CollateralCache, pccs: Pccs, quote: bytes) -> None:
    location = f"{pccs.behind}/sgx/certification/v4/rootcacrl"
    pccs.change = only("/rootcacrl", lambda _: Reply(302, b"", {"Location": location}))
    with pytest.raises(CollateralUnavailable, match="302"):
        await cache.held(quote)


async def test_statements_about_another_technology_are_a_failure(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes
) -> None:
    def change(data: bytes) -> bytes:
        value = json.loads(data)["enclaveIdentity"]
        text = json.dumps({**value, "id": "QE"}, separators=(",", ":"))
        return signed_identity(text, machine.pki)

    pccs.change = only("/qe/identity", body(change))
    with pytest.raises(CollateralUnavailable, match="not about TDX"):
        await cache.held(quote)


async def test_a_signer_that_the_root_did_not_issue_is_a_failure(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock
) -> None:
    other = VendorPki.create(machine.pki.platform, int(clock.now))
    _, root = pem_parts(machine.pki.tcb_chain)
    signer, _ = pem_parts(other.tcb_chain)

    def change(path: str, reply: Reply) -> Reply:
        if not path.endswith("/qe/identity"):
            return reply
        text = json.dumps(json.loads(reply.body)["enclaveIdentity"], separators=(",", ":"))
        headers = dict.fromkeys(reply.headers, quoted(signer + root))
        return replace(reply, body=signed_identity(text, other), headers=headers)

    pccs.change = change
    with pytest.raises(CollateralUnavailable, match="chain does not verify"):
        await cache.held(quote)


async def test_a_chain_without_end_is_a_failure(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes
) -> None:
    signer, root = pem_parts(machine.pki.tcb_chain)
    pccs.change = only("/tcb", chain(quoted(signer + root * 4)))
    with pytest.raises(CollateralUnavailable, match="too long"):
        await cache.held(quote)


async def test_bad_news_is_no_garbage(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock
) -> None:
    """What the vendor signed about a revoked machine is what its evidence must be refused with."""
    shape = CollateralShape(int(clock.now), tcb_status="Revoked", revoked=frozenset({"pck", "platform_ca"}))
    pccs.change = serving(machine, shape)
    collateral = await cache.collateral(quote)
    with pytest.raises(tdx.QuoteNotVerified):
        tdx.verify(quote, collateral, [machine.vendor_root], int(clock.now))


async def test_statements_under_two_roots_are_a_failure(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock
) -> None:
    other = VendorPki.create(machine.pki.platform, int(clock.now))
    given = make_collateral(other, CollateralShape(int(clock.now)))

    def change(path: str, reply: Reply) -> Reply:
        if not path.endswith("/qe/identity"):
            return reply
        identity = signed_identity(given.qe_identity, other)
        return replace(reply, body=identity, headers=dict.fromkeys(reply.headers, quoted(given.tcb_chain)))

    pccs.change = change
    with pytest.raises(CollateralUnavailable, match="different roots"):
        await cache.held(quote)
