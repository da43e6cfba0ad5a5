"""Vaults: one per tenant, durable before anyone can seal, and keys that only the router they are for can open."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from libs.errors import Code, MeshError
from libs.events.erasure import Authority, ErasureOrdered
from libs.events.records import Entry, open_record, seal
from libs.events.vault import PUBLIC_VAULT_ID, derive_tag_key, derive_vault_key, leaf_tag
from libs.identity.sealed import HpkeKeyMissing, ReceiverKey, SealedKeyRefused, release_info
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from services.ledger.keys import ReleasedKey
from services.ledger.storage.keyring import KeyringFile
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.vaults import (
    TenantIdMalformed,
    VaultEpochUnknown,
    VaultErased,
    Vaults,
    VaultUnknown,
    seal_for,
)
from tests.fakes.joined_mesh import Clock

from .writers import Keys

LOG_ID = b"\x01" * 32
KEYRING_KEY = ReleasedKey(1, b"\x02" * 32)
TENANT, OTHER = "ab" * 16, "cd" * 16
ROUTER = "spiffe://mesh.test/router/1"


class Away(MeshError):
    code = Code.UNAVAILABLE
    reason = "AWAY"


class Ledger:
    """A ledger's vaults, which `again` opens as the next start would."""

    def __init__(self, folder: Path) -> None:
        self.keys = Keys()
        self.erasures = Erasures()
        self.clock = Clock(datetime(2026, 3, 31, tzinfo=UTC).timestamp())
        self.folder = folder

    def again(self) -> Vaults:
        file = KeyringFile(self.folder, LOG_ID)
        return Vaults(file, file.load(KEYRING_KEY.key), KEYRING_KEY, self.keys, self.erasures, self.clock)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


async def test_a_vault_is_opened_once_and_survives_a_restart(ledger: Ledger) -> None:
    vaults = ledger.again()
    first, second = await vaults.open(TENANT), await vaults.open(TENANT)
    other = await vaults.open(OTHER)
    restarted = ledger.again()
    assert first == second == await restarted.open(TENANT)
    assert first == await restarted.key(first.vault_id, first.epoch)
    assert (first.vault_id, first.key) != (other.vault_id, other.key)
    assert first.epoch == (2026 - 1970) * 12 + 3


async def test_calls_at_once_make_one_vault(ledger: Ledger) -> None:
    vaults = ledger.again()
    opened = await asyncio.gather(*(vaults.open(TENANT) for _ in range(8)))
    assert len(set(opened)) == 1
    assert ledger.again().holds(opened[0].vault_id, opened[0].epoch)


async def test_each_month_has_its_own_share_and_the_old_one_still_opens(ledger: Ledger) -> None:
    vaults = ledger.again()
    march = await vaults.open(TENANT)
    ledger.clock.now = datetime(2026, 4, 1, tzinfo=UTC).timestamp()
    april = await vaults.open(TENANT)
    assert (april.vault_id, april.epoch) == (march.vault_id, march.epoch + 1)
    assert april.key != march.key
    assert await ledger.again().key(march.vault_id, march.epoch) == march


async def test_the_key_needs_both_halves(ledger: Ledger) -> None:
    vaults = ledger.again()
    opened = await vaults.open(TENANT)
    (shares,) = KeyringFile(ledger.folder, LOG_ID).load(KEYRING_KEY.key).vaults
    released = await ledger.keys.release(f"ledger-vault/{opened.vault_id.hex()}", opened.epoch)
    share = shares.epochs[opened.epoch]
    assert opened.key == derive_vault_key(released.key, share, opened.vault_id, opened.epoch)
    assert vaults.tag(opened.vault_id, 5) == leaf_tag(derive_tag_key(shares.tag_share, opened.vault_id), 5)
    assert vaults.tag(PUBLIC_VAULT_ID, 5) == leaf_tag(bytes(32), 5)


async def test_the_share_is_durable_even_when_the_kms_is_away(ledger: Ledger) -> None:
    def away(name: str) -> None:
        raise Away(name)

    ledger.keys.fail = away
    vaults = ledger.again()
    with pytest.raises(Away):
        await vaults.open(TENANT)
    (shares,) = KeyringFile(ledger.folder, LOG_ID).load(KEYRING_KEY.key).vaults
    ledger.keys.fail = lambda name: None
    assert (await vaults.open(TENANT)).vault_id == shares.vault_id


@pytest.mark.parametrize("tenant", ["", "AB" * 16, "ab" * 15, "g" * 32, "ab" * 16 + "\n"])
async def test_what_is_no_tenants_id_opens_nothing(ledger: Ledger, tenant: str) -> None:
    with pytest.raises(TenantIdMalformed):
        await ledger.again().open(tenant)


async def test_vaults_and_months_that_were_never_opened_have_no_key(ledger: Ledger) -> None:
    vaults = ledger.again()
    opened = await vaults.open(TENANT)
    with pytest.raises(VaultEpochUnknown):
        await vaults.key(opened.vault_id, opened.epoch + 1)
    with pytest.raises(VaultUnknown):
        await vaults.key(b"\x77" * 16, opened.epoch)
    with pytest.raises(VaultUnknown):
        vaults.tag(b"\x77" * 16, 1)


async def test_what_a_router_seals_with_its_copy_opens_at_the_ledger(ledger: Ledger) -> None:
    receiver = ReceiverKey()
    vaults = ledger.again()
    opened = await vaults.open(TENANT)
    sealed = seal_for(opened, receiver.public.hex(), ROUTER)
    info = release_info(f"ledger-vault/{sealed.vault_id.hex()}", sealed.epoch, ROUTER)
    assert receiver.open(sealed.sealed, info) == opened.key
    record = seal(b'{"v":1}', Kind.RECEIPT, b"\x11" * 32, 1, bytes(32), opened)
    again = await ledger.again().key(sealed.vault_id, sealed.epoch)
    assert open_record(record, b"\x11" * 32, 1, again).canonical == b'{"v":1}'


async def test_a_sealed_key_is_for_one_router_and_one_month(ledger: Ledger) -> None:
    receiver = ReceiverKey()
    sealed = seal_for(await ledger.again().open(TENANT), receiver.public.hex(), ROUTER)
    name = f"ledger-vault/{sealed.vault_id.hex()}"
    for info in (
        release_info(name, sealed.epoch, "spiffe://mesh.test/router/2"),
        release_info(name, sealed.epoch + 1, ROUTER),
        release_info("ledger-vault/" + "00" * 16, sealed.epoch, ROUTER),
    ):
        with pytest.raises(SealedKeyRefused):
            receiver.open(sealed.sealed, info)


async def test_a_router_without_a_receiving_key_gets_nothing(ledger: Ledger) -> None:
    opened = await ledger.again().open(TENANT)
    with pytest.raises(HpkeKeyMissing):
        seal_for(opened, None, ROUTER)


async def test_a_destroyed_share_is_in_no_file_and_no_memory_and_other_months_and_tenants_keep_theirs(
    ledger: Ledger,
) -> None:
    vaults = ledger.again()
    march, other = await vaults.open(TENANT), await vaults.open(OTHER)
    ledger.clock.now = datetime(2026, 4, 1, tzinfo=UTC).timestamp()
    april = await vaults.open(TENANT)
    generation = await vaults.destroy(VaultPart(march.vault_id, march.epoch))
    assert set(ledger.keys.forgotten) == {f"ledger-vault/{march.vault_id.hex()}"}
    assert await vaults.destroy(VaultPart(march.vault_id, march.epoch)) == generation
    for one in (vaults, ledger.again()):
        assert not one.holds(march.vault_id, march.epoch)
        with pytest.raises(VaultEpochUnknown):
            await one.key(march.vault_id, march.epoch)
        assert await one.key(april.vault_id, april.epoch) == april
        assert await one.key(other.vault_id, other.epoch) == other
        one.tag(march.vault_id, 1)


async def test_a_destroyed_vault_leaves_neither_shares_nor_its_tenants_name(ledger: Ledger) -> None:
    vaults = ledger.again()
    opened, other = await vaults.open(TENANT), await vaults.open(OTHER)
    vaults.tag(opened.vault_id, 1)
    generation = await vaults.destroy(VaultPart(opened.vault_id, None))
    kept = KeyringFile(ledger.folder, LOG_ID).load(KEYRING_KEY.key)
    assert (kept.generation, [vault.tenant for vault in kept.vaults]) == (generation, [OTHER])
    for one in (vaults, ledger.again()):
        assert one.of_tenant(TENANT) is None
        with pytest.raises(VaultUnknown):
            await one.key(opened.vault_id, opened.epoch)
        with pytest.raises(VaultUnknown):
            one.tag(opened.vault_id, 1)
    returned = await vaults.open(TENANT)
    assert returned.vault_id != opened.vault_id
    assert await ledger.again().open(TENANT) == returned
    assert await vaults.key(other.vault_id, other.epoch) == other


async def test_a_closed_vault_gives_out_no_key_though_its_shares_are_still_there(ledger: Ledger) -> None:
    vaults = ledger.again()
    opened, other = await vaults.open(TENANT), await vaults.open(OTHER)
    close(ledger, VaultPart(opened.vault_id, None))
    assert not vaults.holds(opened.vault_id, opened.epoch)
    for refused in (vaults.open(TENANT), vaults.key(opened.vault_id, opened.epoch)):
        with pytest.raises(VaultErased):
            await refused
    assert await vaults.open(OTHER) == other


async def test_a_vault_that_is_closed_while_its_key_is_awaited_gives_none(ledger: Ledger) -> None:
    opened = await ledger.again().open(TENANT)
    ledger.keys.fail = lambda name: close(ledger, VaultPart(opened.vault_id, None))
    with pytest.raises(VaultErased):
        await ledger.again().open(TENANT)


async def test_a_month_that_was_erased_is_not_opened_again(ledger: Ledger) -> None:
    """A clock that goes back must not bring another share for the same month."""
    vaults = ledger.again()
    march = await vaults.open(TENANT)
    close(ledger, VaultPart(march.vault_id, march.epoch))
    await vaults.destroy(VaultPart(march.vault_id, march.epoch))
    with pytest.raises(VaultErased):
        await vaults.open(TENANT)


def close(ledger: Ledger, part: VaultPart) -> None:
    said = ErasureOrdered(part, 0, Authority(1, retention_months=1))
    ledger.erasures.take(Entry(Kind.ERASURE, b"\x11" * 32, 1, bytes(32), None, said.body()))
