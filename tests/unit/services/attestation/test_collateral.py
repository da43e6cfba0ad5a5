"""Collateral against a real PCCS endpoint: fetched once, served while valid, never stormed, never garbage."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from libs.tee import tdx
from libs.tee.collateral import Collateral
from services.attestation.collateral import CollateralCache, _Flight
from services.attestation.pccs import CollateralUnavailable
from services.attestation.pccs import Platform as PccsPlatform
from services.attestation.shelf import Shelf
from services.devtee.collateral import CollateralShape, make_collateral
from services.devtee.machine import Machine
from services.devtee.pki import VendorPki
from services.devtee.platform import Platform
from services.devtee.quotes import TdReport, make_quote
from services.devtee.vendors import serving_vendors
from tests.fakes.joined_mesh import Clock, JoinedMesh

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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pccs(machine: Machine, clock: Clock) -> AsyncIterator[Pccs]:
    async with proxied(machine, clock) as running:
        yield running


@pytest.fixture
def cache(pccs: Pccs, clock: Clock) -> CollateralCache:
    return CollateralCache(pccs.url, 10.0, clock)


@pytest.fixture
def quote(mesh: JoinedMesh) -> bytes:
    return mesh.tds["router"].quote(b"x")


async def test_everybody_who_asks_at_once_waits_for_one_fetch(cache: CollateralCache, pccs: Pccs, quote: bytes) -> None:
    pccs.go_on.clear()
    asking = [asyncio.create_task(cache.held(quote)) for _ in range(5)]
    gone = asyncio.create_task(cache.held(quote))
    await pccs.asked.wait()
    gone.cancel()  # One who gives up disturbs nobody.
    pccs.go_on.set()
    answers = await asyncio.gather(*asking)
    assert pccs.fetches == 1
    assert all(answer is answers[0] for answer in answers)
    assert answers[0].valid_until == answers[0].collateral.expires_at()


async def test_the_one_who_fetches_may_be_cancelled(cache: CollateralCache, pccs: Pccs, quote: bytes) -> None:
    pccs.go_on.clear()
    first = asyncio.create_task(cache.held(quote))
    await pccs.asked.wait()
    second = asyncio.create_task(cache.held(quote))
    first.cancel()
    pccs.go_on.set()
    assert (await second).valid_until > 0
    assert pccs.fetches == 2


async def test_a_failure_is_repeated_for_a_moment_and_then_tried_again(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    pccs.broken = True
    for _ in range(3):
        with pytest.raises(CollateralUnavailable):
            await cache.held(quote)
    assert pccs.fetches == 1
    pccs.broken = False
    with pytest.raises(CollateralUnavailable):
        await cache.held(quote)
    clock.now += 3
    await cache.collateral(quote)
    assert pccs.fetches == 2


async def test_failures_in_a_row_are_further_and_further_apart(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    pccs.broken = True
    asked_at = []
    for _ in range(2 * LONGEST_BACKOFF * 4):
        before = pccs.fetches
        with pytest.raises(CollateralUnavailable):
            await cache.held(quote)
        if pccs.fetches > before:
            asked_at.append(clock.now)
        clock.now += 1
    gaps = [later - earlier for earlier, later in pairwise(asked_at)]
    # Half of the doubled wait is jitter, and the clock here moves by whole seconds.
    for count, gap in enumerate(gaps):
        longest = min(2 * 2**count, LONGEST_BACKOFF)
        assert longest / 2 <= gap <= longest + 1
    clock.now -= 10_000  # A clock that was set back does not make it last.
    pccs.broken = False
    await cache.held(quote)


async def test_collateral_is_renewed_long_before_it_ends(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    clock.now += HOUR - 1
    await cache.renew()
    assert await cache.held(quote) is held
    clock.now += 25 * HOUR
    await cache.renew()
    renewed = await cache.held(quote)
    assert renewed.valid_until > held.valid_until
    assert pccs.fetches == 2


@pytest.mark.parametrize(("number", "later"), [(16, 0), (17, -1), (16, 10), (18, -10)])
async def test_what_is_held_is_not_exchanged_for_what_is_older(
    cache: CollateralCache,
    pccs: Pccs,
    machine: Machine,
    quote: bytes,
    clock: Clock,
    number: int,
    later: int,
) -> None:
    issued = int(clock.now) - HOUR
    pccs.change = serving(machine, CollateralShape(issued, evaluation_number=17))
    held = await cache.held(quote)
    pccs.change = serving(machine, CollateralShape(issued + later, evaluation_number=number))
    clock.now += 2 * HOUR
    for _ in range(2):
        await cache.renew()
        assert await cache.held(quote) is held
    assert pccs.fetches == 2  # It counts as a failure, so a PCCS that lags is not stormed.
    pccs.change = serving(machine, CollateralShape(issued, evaluation_number=18))
    clock.now += LONGEST_BACKOFF
    await cache.renew()
    assert await cache.held(quote) is not held


async def test_an_older_identity_alone_is_not_taken_either(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock
) -> None:
    issued = int(clock.now) - HOUR
    pccs.change = serving(machine, CollateralShape(issued))
    held = await cache.held(quote)
    newer, older = serving(machine, CollateralShape(issued + 60)), serving(machine, CollateralShape(issued - 60))
    pccs.change = lambda path, reply: (older if path.endswith("/qe/identity") else newer)(path, reply)
    clock.now += 2 * HOUR
    await cache.renew()
    assert await cache.held(quote) is held


@pytest.mark.parametrize("path", ["/rootcacrl", "/pckcrl"])
async def test_an_older_crl_alone_is_not_taken_either(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, path: str
) -> None:
    """It would bring back what was revoked since."""
    issued = int(clock.now) - HOUR
    newer = serving(machine, CollateralShape(issued, revoked=frozenset({"pck", "tcb_signing"})))
    older = serving(machine, CollateralShape(issued - 60))
    pccs.change = newer
    held = await cache.held(quote)
    pccs.change = lambda asked, reply: (older if asked.endswith(path) else newer)(asked, reply)
    clock.now += 2 * HOUR
    await cache.renew()
    assert await cache.held(quote) is held


@dataclass(slots=True)
class Roots:
    """One PCCS that serves under the vendor's root, or under another that it made up."""

    pccs: Pccs
    machine: Machine
    clock: Clock
    cache: CollateralCache

    def vendor(self, shape: CollateralShape) -> None:
        self.pccs.change = serving(self.machine, shape)

    def made_up(self, shape: CollateralShape) -> None:
        pki = VendorPki.create(self.machine.pki.platform, int(self.clock.now))
        statements, chains = serving(replace(self.machine, pki=pki), shape), quoted(pki.tcb_chain)

        def change(path: str, reply: Reply) -> Reply:
            chain = quoted(pki.pck_crl_chain) if path.endswith("/pckcrl") else chains
            return replace(statements(path, reply), headers=dict.fromkeys(reply.headers, chain))

        self.pccs.change = change

    async def later(self, quote: bytes) -> Collateral:
        """What is held after the next renewal."""
        self.clock.now += 2 * HOUR
        await self.cache.renew()
        return await self.cache.collateral(quote)


@pytest.fixture
def roots(pccs: Pccs, machine: Machine, clock: Clock, cache: CollateralCache) -> Roots:
    return Roots(pccs, machine, clock, cache)


@pytest.mark.parametrize("count", [1, 10])
async def test_older_statements_do_not_come_back_through_other_roots(roots: Roots, quote: bytes, count: int) -> None:
    issued = int(roots.clock.now)
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    await roots.cache.collateral(quote)
    for _ in range(count):
        roots.made_up(CollateralShape(issued))
        wrong = await roots.later(quote)
        assert wrong.tcb_info_issuer_chain != roots.machine.pki.tcb_chain
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    assert await roots.later(quote) == wrong
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    roots.clock.now += LONGEST_BACKOFF
    assert (await roots.later(quote)).tcb_info_issuer_chain == roots.machine.pki.tcb_chain
    assert [len(remembered) for remembered in roots.cache._newest.values()] == [min(count + 1, 8)]


async def test_older_statements_do_not_come_back_once_another_roots_have_ended(roots: Roots, quote: bytes) -> None:
    issued = int(roots.clock.now)
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    await roots.cache.collateral(quote)
    roots.made_up(CollateralShape(issued, validity_seconds=3 * HOUR))
    await roots.later(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    with pytest.raises(CollateralUnavailable, match="older TCB info"):
        await roots.later(quote)


async def test_a_root_that_is_seen_late_is_held_to_what_is_held(roots: Roots, quote: bytes) -> None:
    """Although earlier ones took all the places."""
    issued = int(roots.clock.now)
    for _ in range(9):
        roots.made_up(CollateralShape(issued))
        await roots.later(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    held = await roots.later(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    assert await roots.later(quote) == held


async def test_what_has_ended_is_no_measure(roots: Roots, quote: bytes) -> None:
    issued = int(roots.clock.now)
    roots.vendor(CollateralShape(issued, evaluation_number=17, validity_seconds=HOUR))
    await roots.cache.collateral(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    assert '"tcbEvaluationDataNumber":16' in (await roots.later(quote)).tcb_info


async def test_ages_are_remembered_of_so_many_platforms(cache: CollateralCache, quote: bytes) -> None:
    held = await cache.held(quote)
    for number in range(300):
        cache._hold(PccsPlatform(f"{number:012x}", "platform"), held)
    assert len(cache._newest) == len(cache._held) == 256


async def test_statements_under_a_root_that_was_not_the_vendors_do_not_stay(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    """Whoever once answered for the PCCS could else keep the vendor's own statements out for as long as it liked."""
    stranger = replace(machine, pki=VendorPki.create(machine.pki.platform, int(clock.now)))
    async with proxied(stranger, clock) as other:
        wrong = await (await restarted(other, clock, tmp_path)).collateral(quote)
    cache = await restarted(pccs, clock, tmp_path)
    assert await cache.collateral(quote) == wrong
    clock.now += 2 * HOUR
    await cache.renew()
    assert (await cache.collateral(quote)).tcb_info_issuer_chain == machine.pki.tcb_chain


async def test_of_two_kept_files_the_newer_is_used(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    """A crash may leave both."""
    cache = await restarted(pccs, clock, tmp_path)
    pccs.change = serving(machine, CollateralShape(int(clock.now) - HOUR, evaluation_number=17))
    older = await cache.collateral(quote)
    (kept,) = files(tmp_path)
    ca, fmspc, _ = kept.name.split(".")
    shape = CollateralShape(int(clock.now), evaluation_number=18, validity_seconds=HOUR)
    newer = Collateral.parse(make_collateral(machine.pki, shape).members())
    digest = hashlib.sha256(newer.encode()).hexdigest()
    (tmp_path / f"{ca}.{fmspc}.{digest}").write_bytes(newer.encode())
    assert older.expires_at() > newer.expires_at()
    again = await restarted(pccs, clock, tmp_path)
    assert await again.collateral(quote) == newer


async def test_of_two_kept_files_that_are_equally_new_the_one_that_lasts_longer_is_used(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    cache = await restarted(pccs, clock, tmp_path)
    pccs.change = serving(machine, CollateralShape(int(clock.now), validity_seconds=HOUR))
    short = await cache.collateral(quote)
    (kept,) = files(tmp_path)
    ca, fmspc, short_digest = kept.name.split(".")
    for first_in_order in (True, False):
        while True:
            # Signatures are random, and so is which of the two files comes first.
            shape = CollateralShape(int(clock.now), validity_seconds=2 * HOUR)
            long = Collateral.parse(make_collateral(machine.pki, shape).members())
            digest = hashlib.sha256(long.encode()).hexdigest()
            if (digest < short_digest) == first_in_order:
                break
        path = tmp_path / f"{ca}.{fmspc}.{digest}"
        path.write_bytes(long.encode())
        again = await restarted(pccs, clock, tmp_path)
        assert await again.collateral(quote) == long != short
        path.unlink()


async def test_what_is_valid_is_served_at_once_while_the_pccs_is_slow(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    pccs.asked.clear()
    pccs.go_on.clear()
    clock.now += 2 * HOUR
    renewing = asyncio.create_task(cache.renew())
    await pccs.asked.wait()
    assert await cache.held(quote) is held
    pccs.go_on.set()
    await renewing
    assert await cache.held(quote) is not held


async def test_what_is_still_valid_is_used_while_the_pccs_is_away_and_no_longer(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    pccs.broken = True
    clock.now = held.valid_until - 1
    await cache.renew()
    await cache.renew()
    assert await cache.held(quote) is held
    assert pccs.fetches == 2
    clock.now = held.valid_until
    for _ in range(2):
        with pytest.raises(CollateralUnavailable):
            await cache.held(quote)
        await cache.renew()


def only(path: str, change: Callable[[Reply], Reply]) -> Callable[[str, Reply], Reply]:
    return lambda asked, reply: change(reply) if asked.endswith(path) else reply


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


def signed_identity(text: str, pki: VendorPki) -> bytes:
    signature = pki.tcb_signing.sign_raw(text.encode()).hex()
    return f'{{"enclaveIdentity":{text},"signature":"{signature}"}}'.encode()


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


def pem_parts(chain: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [part + end for part in chain.split(end) if part.strip()]


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


def quoted(chain: str) -> str:
    return str(httpx.QueryParams({"chain": chain})).removeprefix("chain=").replace("+", "%20")


async def test_a_pccs_that_does_not_answer_is_not_waited_for(pccs: Pccs, quote: bytes) -> None:
    pccs.go_on.clear()
    with pytest.raises(CollateralUnavailable):
        await CollateralCache(pccs.url, 0.1).held(quote)


async def test_a_pccs_that_never_ends_its_answer_is_not_waited_for(quote: bytes) -> None:
    stop = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        await stop.wait()
        return response

    application = web.Application()
    application.router.add_get("/{path:.*}", drip)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with pytest.raises(CollateralUnavailable):
            await CollateralCache(f"http://127.0.0.1:{runner.addresses[0][1]}", 0.2).held(quote)
    finally:
        stop.set()
        await runner.cleanup()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nobody.invalid", "ftp://127.0.0.1", "no url"])
async def test_a_pccs_that_is_not_there_is_a_failure(url: str, quote: bytes) -> None:
    with pytest.raises(CollateralUnavailable):
        await CollateralCache(url, 5).held(quote)


async def test_the_root_crl_may_come_from_elsewhere(pccs: Pccs, quote: bytes, machine: Machine, clock: Clock) -> None:
    """The vendor's own service does not hand it out."""
    pccs.change = only("/rootcacrl", lambda reply: replace(reply, status=404))
    with pytest.raises(CollateralUnavailable):
        await CollateralCache(pccs.url, 10, clock).held(quote)
    crl = make_collateral(machine.pki, CollateralShape(int(clock.now))).root_ca_crl
    async with serving_bytes(crl) as elsewhere:
        cache = CollateralCache(pccs.url, 10, clock, root_crl_url=f"{elsewhere}/root.der")
        assert (await cache.collateral(quote)).root_ca_crl == crl.hex()


@asynccontextmanager
async def serving_bytes(data: bytes) -> AsyncIterator[str]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=data)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_platforms_that_nobody_knows_leave_no_room_taken(
    cache: CollateralCache, mesh: JoinedMesh, quote: bytes
) -> None:
    now = int(Clock().now)
    elsewhere = replace(Platform.random(), fmspc=bytes.fromhex("00a06ed50000"))
    stranger = replace(mesh.machine, pki=VendorPki.create(elsewhere, now))
    strange = stranger.boot(b'{"name":"x"}', mesh.tds["router"].identity, 0).quote(b"x")
    with pytest.raises(CollateralUnavailable):
        await cache.held(strange)
    await cache.held(quote)
    assert not cache._flights


def forged(number: int) -> bytes:
    """A quote that names a platform of its maker's liking."""
    elsewhere = replace(Platform.random(), fmspc=number.to_bytes(6, "big"))
    return make_quote(VendorPki.create(elsewhere, int(time.time())), TdReport(report_data=bytes(64)))


async def test_forged_platforms_leave_those_that_are_held_alone(
    pccs: Pccs, cache: CollateralCache, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    pccs.go_on.clear()
    crowd = [asyncio.create_task(cache.held(forged(number))) for number in range(300)]
    await pccs.fetched(1 + 32)
    assert await cache.held(quote) is held
    clock.now += 2 * HOUR
    renewing = asyncio.create_task(cache.renew())
    await pccs.fetched(1 + 32 + 1)
    pccs.go_on.set()
    await renewing
    assert await cache.held(quote) is not held
    outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {CollateralUnavailable}
    assert not cache._flights
    assert len(cache._failures) == 256


async def test_a_crowd_of_forged_platforms_waits_and_an_honest_one_is_served_after_them(
    pccs: Pccs, cache: CollateralCache, quote: bytes
) -> None:
    pccs.go_on.clear()
    crowd = [asyncio.create_task(cache.held(forged(number))) for number in range(300)]
    await pccs.fetched(32)
    honest = asyncio.create_task(cache.held(quote))
    pccs.go_on.set()
    assert (await honest).valid_until > 0
    await asyncio.gather(*crowd, return_exceptions=True)


async def test_more_platforms_than_can_be_waited_for_are_refused_unless_held(
    pccs: Pccs, cache: CollateralCache, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    cache._flights.update({PccsPlatform(f"{number:012x}", "platform"): _Flight() for number in range(1024)})
    with pytest.raises(CollateralUnavailable, match="too many"):
        await cache.held(forged(1 << 20))
    clock.now += 2 * HOUR
    await cache.renew()
    assert await cache.held(quote) is not held


async def test_forged_platforms_do_not_make_a_failed_renewal_forgotten(
    pccs: Pccs, cache: CollateralCache, quote: bytes, clock: Clock
) -> None:
    await cache.held(quote)
    pccs.broken = True
    clock.now += 2 * HOUR
    await cache.renew()
    for number in range(257):
        with pytest.raises(CollateralUnavailable):
            await cache.held(forged(number))
    asked = pccs.fetches
    await cache.renew()
    with pytest.raises(CollateralUnavailable):
        await cache.held(forged(256))
    assert pccs.fetches == asked
    with pytest.raises(CollateralUnavailable):
        await cache.held(forged(0))  # The one that was forgotten is the oldest.
    assert pccs.fetches == asked + 1


@pytest.mark.parametrize("damage", [b"", b"\x04\x00", b"\0" * 5000])
async def test_what_is_no_quote_is_refused(cache: CollateralCache, pccs: Pccs, damage: bytes) -> None:
    with pytest.raises(tdx.QuoteMalformed):
        await cache.held(damage)
    assert pccs.fetches == 0


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def restarted(pccs: Pccs, clock: Clock, folder: Path) -> CollateralCache:
    cache = CollateralCache(pccs.url, 10.0, clock, shelf=Shelf(folder))
    await cache.load()
    return cache


async def test_a_restarted_service_answers_while_the_pccs_is_away(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    held = await (await restarted(pccs, clock, tmp_path / "collateral")).held(quote)
    pccs.broken = True
    cache = await restarted(pccs, clock, tmp_path / "collateral")
    assert await cache.collateral(quote) == held.collateral
    assert pccs.fetches == 1
    pccs.broken = False
    clock.now += 25 * HOUR
    await cache.renew()
    assert (await cache.held(quote)).valid_until > held.valid_until
    assert len(files(tmp_path / "collateral")) == 1  # The newer one took its place.
    clock.now = held.valid_until + 40 * 86400
    pccs.broken = True
    with pytest.raises(CollateralUnavailable):
        await (await restarted(pccs, clock, tmp_path / "collateral")).held(quote)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
async def test_kept_collateral_that_is_damaged_or_foreign_is_passed_over(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path, damage: bytes
) -> None:
    await (await restarted(pccs, clock, tmp_path)).held(quote)
    (kept,) = files(tmp_path)
    kept.write_bytes(damage)
    (tmp_path / "README").write_bytes(b"mine")
    pccs.broken = True
    with pytest.raises(CollateralUnavailable):
        await (await restarted(pccs, clock, tmp_path)).held(quote)
    assert (tmp_path / "README").read_bytes() == b"mine"


async def test_kept_collateral_that_was_exchanged_is_passed_over(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    await (await restarted(pccs, clock, tmp_path)).held(quote)
    (kept,) = files(tmp_path)
    other = make_collateral(machine.pki, CollateralShape(int(clock.now) - HOUR))
    kept.write_bytes(Collateral.parse(other.members()).encode())
    cache = await restarted(pccs, clock, tmp_path)
    assert not cache._held


async def test_kept_collateral_under_another_platforms_name_is_passed_over(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    await (await restarted(pccs, clock, tmp_path)).held(quote)
    (kept,) = files(tmp_path)
    ca, _, digest = kept.name.split(".")
    kept.rename(tmp_path / f"{ca}.000000000000.{digest}")
    cache = await restarted(pccs, clock, tmp_path)
    assert not cache._held


async def test_a_disk_that_fails_costs_only_the_head_start(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    cache = await restarted(pccs, clock, tmp_path / "collateral")
    (tmp_path / "collateral").rmdir()
    (tmp_path / "collateral").write_bytes(b"")
    assert await cache.held(quote) is await cache.held(quote)
