from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import Code, MeshError
from libs.policy.tenant_record import UNLIMITED, ApiKey, Limits, TenantRecord, unrestricted
from libs.policy.tenants import api_key_digest, sign_tenant
from services.router.admission.tenants import Tenant, Tenants, bearer
from services.router.errors import (
    KeyExpired,
    KeyNotScoped,
    RouterError,
    TenantDisabled,
    TenantRevoked,
    TenantsUnavailable,
    Unauthorized,
)

ADMIN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_ADMIN = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
(KEY,) = unrestricted(api_key_digest("sk-one"))
TENANT = Tenant("ab" * 16, "Acme", KEY)
BEARER = "Bearer sk-one"


class KeyUnknown(MeshError):
    code = Code.NOT_FOUND
    reason = "API_KEY_UNKNOWN"


class Unreachable(MeshError):
    code = Code.UNAVAILABLE
    reason = "PEER_UNREACHABLE"


class Directory:
    """A registry that knows what it is told, counts how often it is asked, and may be out of order."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.asked = 0
        self.reachable = True

    def add(self, key: str, signed: bytes) -> None:
        self.records[bytes.fromhex(api_key_digest(key))] = signed

    async def find(self, digest: bytes) -> bytes:
        self.asked += 1
        if not self.reachable:
            raise Unreachable("no answer")
        if digest not in self.records:
            raise KeyUnknown("no tenant has this key")
        return self.records[digest]


class Bench:
    """Tenants over a directory, with a clock and an administrator's key that tests move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall = 1_000_000.0
        self.admin = ADMIN.public_key().public_bytes_raw()
        self.revoked: set[str] = set()
        self.refused: list[str] = []
        self.directory = Directory()
        self.directory.add("sk-one", record())
        self.tenants = Tenants(
            self.directory.find,
            lambda: self.admin,
            lambda: self.revoked,
            self.refused.append,
            clock=lambda: self.now,
            wall=lambda: self.wall,
            ttl_seconds=30,
            negative_ttl_seconds=5,
            limit=3,
        )


def record(version: int = 2, keys: tuple[str, ...] = ("sk-one", "sk-two"), signer: Ed25519PrivateKey = ADMIN) -> bytes:
    digests = tuple(api_key_digest(key) for key in keys)
    return sign_tenant(TenantRecord(TENANT.tenant_id, version, TENANT.name, unrestricted(*digests)), signer)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_key_of_a_tenant_is_its_tenant_and_asked_for_once(bench: Bench) -> None:
    assert await bench.tenants.authenticate(BEARER, "here") == TENANT
    assert await bench.tenants.authenticate("bearer  sk-one ", "here") == TENANT
    assert bench.directory.asked == 1


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic sk-one", "sk-one", "Bearer " + "x" * 513, "Bearer \udcff"]
)
async def test_request_without_a_key_is_unauthorized_without_asking(bench: Bench, authorization: str | None) -> None:
    with pytest.raises(Unauthorized):
        await bench.tenants.authenticate(authorization, "here")
    assert bench.directory.asked == 0


async def test_unknown_key_is_unauthorized_and_remembered_shortly(bench: Bench) -> None:
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await bench.tenants.authenticate("Bearer sk-new", "here")
    assert bench.directory.asked == 1
    bench.directory.add("sk-new", record(version=3, keys=("sk-new",)))
    bench.now = 5.0
    assert (await bench.tenants.authenticate("Bearer sk-new", "here")).tenant_id == TENANT.tenant_id


async def test_flood_of_wrong_keys_stays_bounded_and_leaves_right_ones_known(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    for number in range(20):
        with pytest.raises(Unauthorized):
            await bench.tenants.authenticate(f"Bearer wrong-{number}", "here")
    bench.directory.reachable = False
    assert await bench.tenants.authenticate(BEARER, "here") == TENANT


async def test_revoked_key_stops_when_its_answer_ends(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    bench.directory.records.clear()
    bench.now = 29.0
    await bench.tenants.authenticate(BEARER, "here")
    bench.now = 30.0
    with pytest.raises(Unauthorized):
        await bench.tenants.authenticate(BEARER, "here")


async def test_a_key_says_for_an_hour_whose_room_it_takes_and_is_looked_up_all_the_same(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    assert not bench.tenants.needs_look_up(BEARER)
    bench.now = 3599.0
    assert bench.tenants.needs_look_up(BEARER)
    assert bench.tenants.remembered(BEARER) == TENANT.tenant_id
    bench.now = 3600.0
    assert bench.tenants.remembered(BEARER) is None


async def test_a_key_that_is_withdrawn_is_not_remembered(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    bench.directory.records.clear()
    bench.now = 30.0
    with pytest.raises(Unauthorized):
        await bench.tenants.authenticate(BEARER, "here")
    assert bench.tenants.remembered(BEARER) is None


async def test_a_revoked_tenant_is_refused_at_once_though_its_key_is_known(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    bench.revoked.add(TENANT.tenant_id)
    with pytest.raises(TenantRevoked):
        await bench.tenants.authenticate(BEARER, "here")
    bench.revoked.clear()
    assert await bench.tenants.authenticate(BEARER, "here") == TENANT


def of_second_form(key: ApiKey = KEY, limits: Limits = UNLIMITED, *, disabled: bool = False) -> bytes:
    return sign_tenant(TenantRecord(TENANT.tenant_id, 3, TENANT.name, (key,), limits, disabled), ADMIN)


async def test_a_withdrawn_key_stops_at_once_where_the_newer_record_is_known(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    bench.directory.records.clear()
    bench.directory.add("sk-two", record(version=3, keys=("sk-two",)))
    assert await bench.tenants.authenticate(BEARER, "here") == TENANT
    await bench.tenants.authenticate("Bearer sk-two", "here")
    with pytest.raises(Unauthorized):
        await bench.tenants.authenticate(BEARER, "here")


async def test_a_key_ends_at_its_time_though_its_record_is_known(bench: Bench) -> None:
    key = ApiKey("laptop", KEY.sha256, not_after=1_000_010)
    bench.directory.add("sk-one", of_second_form(key))
    assert (await bench.tenants.authenticate(BEARER, "here")).key == key
    bench.wall = 1_000_010.0
    with pytest.raises(KeyExpired):
        await bench.tenants.authenticate(BEARER, "here")
    assert bench.refused == ["API_KEY_EXPIRED"]


async def test_a_disabled_tenant_is_refused_whatever_its_keys(bench: Bench) -> None:
    bench.directory.add("sk-one", of_second_form(disabled=True))
    with pytest.raises(TenantDisabled):
        await bench.tenants.authenticate(BEARER, "here")


async def test_limits_are_those_of_the_record(bench: Bench) -> None:
    limits = Limits(concurrent=2)
    bench.directory.add("sk-one", of_second_form(limits=limits))
    assert (await bench.tenants.authenticate(BEARER, "here")).limits == limits


def test_a_key_is_for_its_scopes_and_without_any_for_all() -> None:
    TENANT.require_scope("chat")
    for scopes in ((), ("receipts",)):
        with pytest.raises(KeyNotScoped):
            replace(TENANT, key=replace(KEY, scopes=scopes)).require_scope("chat")
    replace(TENANT, key=replace(KEY, scopes=("chat",))).require_scope("chat")


async def test_every_refusal_is_counted_by_its_reason_and_nobody_else(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    assert bench.refused == []
    bench.revoked.add(TENANT.tenant_id)
    for authorization in (None, "Bearer sk-new", "Bearer sk-new", BEARER):
        with pytest.raises(RouterError):
            await bench.tenants.authenticate(authorization, "here")
    bench.directory.reachable = False
    with pytest.raises(TenantsUnavailable):
        await bench.tenants.authenticate("Bearer another", "here")
    assert bench.refused == [*["API_KEY_INVALID"] * 3, "TENANT_REVOKED", "TENANTS_UNAVAILABLE"]


async def refused_with(bench: Bench, reason: str, authorization: str = BEARER) -> None:
    with pytest.raises(TenantsUnavailable) as refused:
        await bench.tenants.authenticate(authorization, "here")
    assert isinstance(refused.value.__cause__, MeshError)
    assert refused.value.__cause__.reason == reason


async def test_record_that_the_administrator_did_not_sign_is_refused(bench: Bench) -> None:
    bench.directory.add("sk-one", record(signer=OTHER_ADMIN))
    await refused_with(bench, "TENANT_SIGNATURE_INVALID")


async def test_genuine_record_without_the_key_is_refused(bench: Bench) -> None:
    bench.directory.add("sk-three", record())
    await refused_with(bench, "TENANT_RECORD_FOREIGN", "Bearer sk-three")


async def test_record_older_than_one_seen_is_refused(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    bench.directory.add("sk-two", record(version=1))
    await refused_with(bench, "TENANT_RECORD_OUTDATED", "Bearer sk-two")


async def test_malformed_record_is_refused(bench: Bench) -> None:
    bench.directory.add("sk-one", b"{}")
    await refused_with(bench, "TENANT_RECORD_MALFORMED")


async def test_directory_out_of_reach_says_nothing_about_the_key(bench: Bench) -> None:
    bench.directory.reachable = False
    await refused_with(bench, "PEER_UNREACHABLE")
    bench.directory.reachable = True
    assert await bench.tenants.authenticate(BEARER, "here") == TENANT


async def test_new_administrator_key_ends_cached_answers(bench: Bench) -> None:
    await bench.tenants.authenticate(BEARER, "here")
    bench.admin = OTHER_ADMIN.public_key().public_bytes_raw()
    await refused_with(bench, "TENANT_SIGNATURE_INVALID")


def test_bearer_is_trimmed_and_an_empty_one_is_none() -> None:
    assert bearer("Bearer  abc ") == "abc"
    assert bearer("bearer abc") == "abc"
    assert bearer("BEARER abc") is None
    assert bearer("Bearer  ") is None
