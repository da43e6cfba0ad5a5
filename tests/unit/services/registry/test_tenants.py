"""Tenant records: only the administrator's, only forward."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.identity.freshness import PolicyKeeper
from libs.policy.tenant_record import TenantRecord, TenantRecordMalformed, unrestricted
from libs.policy.tenants import TenantSignatureInvalid, TenantVersionNotNext, api_key_digest, sign_tenant
from services.registry.tenants import ApiKeyUnknown, Tenants
from tests.fakes.registries import Registry

ADMIN, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
FIRST = TenantRecord("ab" * 16, 1, "Acme", unrestricted(api_key_digest("sk-one")))
SECOND = replace(FIRST, version=2, keys=unrestricted(api_key_digest("sk-two")))


@dataclass(slots=True)
class CurrentPolicy:
    tenant_admin_key: bytes = field(default_factory=lambda: ADMIN.public_key().public_bytes_raw())


@dataclass(slots=True)
class Keeper:
    """The policy in force: here, who administers tenants."""

    current: CurrentPolicy = field(default_factory=CurrentPolicy)


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def tenants(registry: Registry, keeper: Keeper) -> Tenants:
    return Tenants(registry.store.tenants, cast(PolicyKeeper, keeper))


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def test_a_record_is_found_by_its_keys(tenants: Tenants) -> None:
    signed = sign_tenant(FIRST, ADMIN)
    await tenants.put(signed)
    assert await tenants.find(digest("sk-one")) == signed
    assert await tenants.put(signed) == FIRST


async def test_a_key_that_a_newer_record_no_longer_lists_is_nobodys(tenants: Tenants) -> None:
    await tenants.put(sign_tenant(FIRST, ADMIN))
    await tenants.put(sign_tenant(SECOND, ADMIN))
    assert await tenants.find(digest("sk-two")) == sign_tenant(SECOND, ADMIN)
    with pytest.raises(ApiKeyUnknown):
        await tenants.find(digest("sk-one"))


@pytest.mark.parametrize("asked", [digest("sk-none"), b"", b"short", bytes(33)])
async def test_a_key_of_nobody_is_unknown(tenants: Tenants, asked: bytes) -> None:
    with pytest.raises(ApiKeyUnknown):
        await tenants.find(asked)


async def test_a_record_that_another_signed_is_refused(tenants: Tenants) -> None:
    with pytest.raises(TenantSignatureInvalid):
        await tenants.put(sign_tenant(FIRST, OTHER))
    with pytest.raises(ApiKeyUnknown):
        await tenants.find(digest("sk-one"))


async def test_what_is_no_record_is_refused(tenants: Tenants) -> None:
    with pytest.raises(TenantRecordMalformed):
        await tenants.put(b"{}")


async def test_an_older_version_or_a_leap_is_refused(tenants: Tenants) -> None:
    with pytest.raises(TenantVersionNotNext):
        await tenants.put(sign_tenant(SECOND, ADMIN))
    for record in (FIRST, SECOND):
        await tenants.put(sign_tenant(record, ADMIN))
    for record in (FIRST, replace(SECOND, name="Other"), replace(SECOND, version=4)):
        with pytest.raises(TenantVersionNotNext):
            await tenants.put(sign_tenant(record, ADMIN))


async def test_a_record_planted_in_the_store_is_never_given_out(tenants: Tenants, registry: Registry) -> None:
    planted = sign_tenant(FIRST, OTHER)
    await registry.store.tenants.put(f"tenant.{FIRST.tenant_id}", planted, 0)
    await registry.store.tenants.put(f"key.{digest('sk-one').hex()}", FIRST.tenant_id.encode(), 0)
    with pytest.raises(TenantSignatureInvalid):
        await tenants.find(digest("sk-one"))


@pytest.mark.parametrize("planted", [b"\xff", b"", b"*", b"of nobody", b"ab" * 17], ids=repr)
async def test_what_names_no_tenant_in_the_store_leads_to_nobody(
    tenants: Tenants, registry: Registry, planted: bytes
) -> None:
    await tenants.put(sign_tenant(FIRST, ADMIN))
    key = f"key.{digest('sk-one').hex()}"
    index = await registry.store.tenants.get(key)
    assert index is not None
    await registry.store.tenants.put(key, planted, index.revision)
    with pytest.raises(ApiKeyUnknown):
        await tenants.find(digest("sk-one"))


async def test_a_new_administrator_can_replace_what_the_one_before_signed(tenants: Tenants, keeper: Keeper) -> None:
    await tenants.put(sign_tenant(FIRST, ADMIN))
    keeper.current = CurrentPolicy(OTHER.public_key().public_bytes_raw())
    with pytest.raises(TenantSignatureInvalid):
        await tenants.put(sign_tenant(SECOND, ADMIN))
    await tenants.put(sign_tenant(SECOND, OTHER))
    assert await tenants.find(digest("sk-two")) == sign_tenant(SECOND, OTHER)
