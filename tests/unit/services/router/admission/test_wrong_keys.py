"""Keys that strangers make up cost a bounded number of look-ups, and keep no right key from being looked up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import Code, MeshError
from libs.policy.tenant_record import TenantRecord, unrestricted
from libs.policy.tenants import api_key_digest, sign_tenant
from services.router.admission.tenants import STRANGERS_AT_ONCE, TTL_SECONDS, Tenants
from services.router.errors import TenantsUnavailable, Unauthorized

PATIENCE_SECONDS = 20.0
ADMIN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TENANT_ID = "ab" * 16
NEVER_SECONDS = 3600.0


class KeyUnknown(MeshError):
    code = Code.NOT_FOUND
    reason = "API_KEY_UNKNOWN"


class Registry:
    """It answers about the tenant's keys at once, and about all others when it is told to, so many at a time."""

    def __init__(self) -> None:
        keys = [api_key_digest(key) for key in ("sk-right", "sk-new")]
        self._record = sign_tenant(TenantRecord(TENANT_ID, 1, "Acme", unrestricted(*keys)), ADMIN)
        self._right = {bytes.fromhex(digest) for digest in keys}
        self.asked: list[bytes] = []
        self.is_full = asyncio.Event()
        """Set while as many are asked about at once as may be."""
        self.answers = asyncio.Semaphore(0)
        self._waiting = 0

    async def find(self, digest: bytes) -> bytes:
        self.asked.append(digest)
        if digest in self._right:
            return self._record
        self._waiting += 1
        if self._waiting == STRANGERS_AT_ONCE:
            self.is_full.set()
        try:
            await self.answers.acquire()
        finally:
            self._waiting -= 1
        raise KeyUnknown("no tenant has this key")


class Bench:
    def __init__(self, *, wrong_key_seconds: float, turn_seconds: float = PATIENCE_SECONDS) -> None:
        self.now = 0.0
        self.registry = Registry()
        self.refused: list[str] = []
        self.tenants = Tenants(
            self.registry.find,
            ADMIN.public_key().public_bytes_raw,
            tuple,
            self.refused.append,
            clock=lambda: self.now,
            wrong_key_seconds=wrong_key_seconds,
            turn_seconds=turn_seconds,
        )

    async def admits(self, key: str, connection: str) -> bool:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await self.tenants.authenticate(f"Bearer {key}", connection)).tenant_id == TENANT_ID

    async def refuses(self, key: str, connection: str) -> None:
        with pytest.raises(Unauthorized):
            await self.tenants.authenticate(f"Bearer {key}", connection)

    @asynccontextmanager
    async def flooded(self, wrong: int, connections: int = 1) -> AsyncIterator[asyncio.TaskGroup]:
        """So many requests with keys that were made up, until the body ends."""
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            flood = [
                tasks.create_task(self.refuses(f"sk-wrong-{number}", f"stranger {number % connections}"))
                for number in range(wrong)
            ]
            await self.registry.is_full.wait()
            yield tasks
            for each in flood:
                each.cancel()


async def test_a_flood_of_wrong_keys_has_so_many_look_ups_at_once_and_a_known_key_needs_none_of_them() -> None:
    bench = Bench(wrong_key_seconds=0.0)
    assert await bench.admits("sk-right", "client")
    bench.registry.asked.clear()
    async with bench.flooded(500):
        assert await bench.admits("sk-right", "client")
        assert len(bench.registry.asked) == STRANGERS_AT_ONCE
        bench.now = TTL_SECONDS
        assert await bench.admits("sk-right", "client"), "it is looked up again, beside them"


async def test_a_key_that_nobody_has_shown_yet_is_behind_one_of_each_connection_however_many_each_has_waiting() -> None:
    bench = Bench(wrong_key_seconds=0.0)
    connections = 3
    async with bench.flooded(500, connections) as tasks:
        first = tasks.create_task(bench.admits("sk-new", "client"))
        await asyncio.sleep(0)
        for _ in range(connections + 1):
            bench.registry.answers.release()
        assert await first
        assert len(bench.registry.asked) <= STRANGERS_AT_ONCE + connections + 2


async def test_what_wrong_keys_cost_in_a_time_is_bounded_also_where_the_registry_is_quick() -> None:
    bench = Bench(wrong_key_seconds=NEVER_SECONDS)
    assert await bench.admits("sk-right", "client")
    bench.registry.asked.clear()
    async with bench.flooded(500):
        for _ in range(500):
            bench.registry.answers.release()
        for _ in range(200):
            await asyncio.sleep(0)  # Whatever can go on without a clock does.
        assert bench.refused == ["API_KEY_INVALID"] * STRANGERS_AT_ONCE
        assert await bench.admits("sk-right", "client")
        assert len(bench.registry.asked) == STRANGERS_AT_ONCE


async def test_who_finds_no_turn_in_time_is_told_to_try_again_and_not_that_the_key_is_wrong() -> None:
    bench = Bench(wrong_key_seconds=0.0, turn_seconds=0.0)
    async with bench.flooded(STRANGERS_AT_ONCE):
        with pytest.raises(TenantsUnavailable):
            await bench.admits("sk-new", "client")
        assert bench.refused == ["TENANTS_UNAVAILABLE"]


async def test_one_wrong_key_that_many_show_at_once_is_looked_up_for_those_who_have_a_turn() -> None:
    bench = Bench(wrong_key_seconds=0.0)
    async with bench.flooded(STRANGERS_AT_ONCE) as tasks:
        same = [tasks.create_task(bench.refuses("sk-same", f"stranger {number}")) for number in range(50)]
        await asyncio.sleep(0)
        for _ in range(2 * STRANGERS_AT_ONCE):
            bench.registry.answers.release()
        await asyncio.gather(*same)
        assert bench.registry.asked.count(bytes.fromhex(api_key_digest("sk-same"))) <= STRANGERS_AT_ONCE
