"""It is responsible for tenants' vaults: made once per tenant, a new share every month, keys for those who may seal.

A vault key has two halves, one from the KMS and one in the keyring. A share is durable before anything can be sealed
under it: what was sealed under a lost share could never be opened again. To destroy it is therefore to erase.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from libs.errors import Code, MeshError
from libs.events.vault import (
    KEY_SIZE,
    PUBLIC_TAG_KEY,
    PUBLIC_VAULT_ID,
    VAULT_ID_SIZE,
    Tags,
    VaultKey,
    derive_tag_key,
    derive_vault_key,
    vault_epoch,
)
from libs.identity.sealed import release_info, seal
from libs.policy.vault_orders import VaultPart
from services.ledger.holding import Alone, Holding
from services.ledger.keys import KeySource, ReleasedKey
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.keyring import Keyring, KeyringFile, VaultShares
from services.ledger.vaults.erasures import Erasures

_TENANT = re.compile(r"[0-9a-f]{32}")

log = structlog.get_logger()


class TenantIdMalformed(MeshError):
    """Not a tenant's random id."""

    code = Code.INVALID_ARGUMENT
    reason = "TENANT_ID_MALFORMED"


class VaultUnknown(MeshError):
    """This log has no such vault."""

    code = Code.NOT_FOUND
    reason = "VAULT_UNKNOWN"


class VaultErased(MeshError):
    """The vault, or that month of it, is closed for ever. Once its shares are gone the tenant gets a new one."""

    reason = "VAULT_ERASED"


class VaultEpochUnknown(MeshError):
    """The vault was never opened for that month."""

    code = Code.NOT_FOUND
    reason = "VAULT_EPOCH_UNKNOWN"


@dataclass(frozen=True, slots=True)
class SealedVaultKey:
    """A vault key for one receiver."""

    vault_id: bytes
    epoch: int
    sealed: bytes


class Vaults:
    """All vaults of a log. Only this changes its keyring."""

    def __init__(
        self,
        file: KeyringFile,
        keyring: Keyring,
        keyring_key: ReleasedKey,
        keys: KeySource,
        erasures: Erasures,
        clock: Callable[[], float] = time.time,
        holding: Holding | None = None,
    ) -> None:
        """`holding` says when a stored keyring counts: without one, at once."""
        self._file = file
        self._erasures = erasures
        self._holding = holding or Alone()
        self._keyring_key = keyring_key
        self._keys = keys
        self._clock = clock
        self._generation = keyring.generation
        self._by_id = {vault.vault_id: vault for vault in keyring.vaults}
        self._by_tenant = {vault.tenant: vault.vault_id for vault in keyring.vaults}
        self._tags = {PUBLIC_VAULT_ID: Tags(PUBLIC_TAG_KEY)}
        self._derived: dict[tuple[bytes, int], VaultKey] = {}
        self._changing = asyncio.Lock()

    async def open(self, tenant: str) -> VaultKey:
        """Return the key that seals a tenant's entries now, making vault and share if need be.

        Both ARE durable when this returns. Raises `TenantIdMalformed`, `VaultErased`, and what keeps the KMS from
        releasing its half.
        """
        require_tenant_id(tenant)
        epoch = vault_epoch(self._clock())
        vault = self.of_tenant(tenant)
        if vault is not None:
            self._require_open(vault.vault_id, epoch)
        if vault is None or epoch not in vault.epochs:
            # A caller that gives up must not leave half a change behind.
            vault = await asyncio.shield(self._extend(tenant, epoch))
        return await self.key(vault.vault_id, epoch)

    async def key(self, vault_id: bytes, epoch: int) -> VaultKey:
        """Return a vault's key of one epoch. Raises `VaultUnknown`, `VaultEpochUnknown`, `VaultErased` or the KMS's
        refusal.
        """
        self._require_open(vault_id, epoch)
        held = self._derived.get((vault_id, epoch))
        if held is not None:
            return held
        vault = self._by_id.get(vault_id)
        if vault is None:
            raise VaultUnknown("no such vault in this log")
        share = vault.epochs.get(epoch)
        if share is None:
            raise VaultEpochUnknown("the vault was never opened for that month")
        released = await self._keys.release(key_name(vault_id), epoch)
        # It may have been ordered meanwhile: what is dropped then must not come back.
        self._require_open(vault_id, epoch)
        derived = derive_vault_key(released.key, share, vault_id, epoch)
        return self._derived.setdefault((vault_id, epoch), VaultKey(vault_id, epoch, derived, vault.tenant))

    def tag(self, vault_id: bytes, vault_seq: int) -> bytes:
        """Return the tag of a vault's entry. Raises `VaultUnknown`."""
        tags = self._tags.get(vault_id)
        if tags is None:
            tags = self._tags[vault_id] = Tags(self.tag_key(vault_id))
        return tags.of(vault_seq)

    def tag_key(self, vault_id: bytes) -> bytes:
        """Return the key of a vault's tags, which opens nothing. Raises `VaultUnknown`."""
        vault = self._by_id.get(vault_id)
        if vault is None:
            raise VaultUnknown("no such vault in this log")
        return derive_tag_key(vault.tag_share, vault_id)

    def holds(self, vault_id: bytes, epoch: int) -> bool:
        """Whether entries sealed there can be opened."""
        vault = self._by_id.get(vault_id)
        return vault is not None and epoch in vault.epochs and self._erasures.closing(vault_id, epoch) is None

    def of(self, vault_id: bytes) -> VaultShares | None:
        """Return a vault that the keyring has."""
        return self._by_id.get(vault_id)

    def of_tenant(self, tenant: str) -> VaultShares | None:
        """Return a tenant's vault, if it has one."""
        vault_id = self._by_tenant.get(tenant)
        return None if vault_id is None else self._by_id[vault_id]

    def all(self) -> Sequence[VaultShares]:
        return tuple(self._by_id.values())

    async def destroy(self, part: VaultPart) -> int:
        """Destroy the share of a month; or every share of a vault, its tag share and its tenant's name.

        They ARE gone from the keyring's file when this returns its generation, and from memory. Other members may have
        them until `forgotten`. Again is no error.
        """
        # A caller that gives up must not leave half a change behind.
        return await asyncio.shield(self._destroy(part))

    async def forgotten(self) -> None:
        """Return once no member of the log has what was destroyed: one that is away has an older keyring."""
        await self._holding.forgotten()

    def _require_open(self, vault_id: bytes, epoch: int) -> None:
        if self._erasures.closing(vault_id, epoch) is not None:
            raise VaultErased("the vault, or that month of it, is closed for ever")

    async def _extend(self, tenant: str, epoch: int) -> VaultShares:
        async with self._changing:
            vault = self.of_tenant(tenant)
            if vault is None:
                vault = VaultShares(secrets.token_bytes(VAULT_ID_SIZE), tenant, secrets.token_bytes(KEY_SIZE), {})
            if epoch in vault.epochs:
                return vault
            grown = replace(vault, epochs={**vault.epochs, epoch: secrets.token_bytes(KEY_SIZE)})
            await self._replace({**self._by_id, grown.vault_id: grown})
            log.info("vault opened", vault_id=grown.vault_id.hex(), epoch=epoch, generation=self._generation)
            return grown

    async def _destroy(self, part: VaultPart) -> int:
        async with self._changing:
            vault = self._by_id.get(part.vault_id)
            if vault is not None and (part.epoch is None or part.epoch in vault.epochs):
                left = dict(self._by_id)
                if part.epoch is None:
                    del left[part.vault_id]
                else:
                    epochs = {epoch: share for epoch, share in vault.epochs.items() if epoch != part.epoch}
                    left[part.vault_id] = replace(vault, epochs=epochs)
                await self._replace(left)
                log.info("shares destroyed", vault=part.subject, generation=self._generation)
            self._derived = {place: key for place, key in self._derived.items() if not _is_in(place, part)}
            self._keys.forget(part.key_name)
            if part.epoch is None:
                self._tags.pop(part.vault_id, None)
            return self._generation

    async def _replace(self, vaults: Mapping[bytes, VaultShares]) -> None:
        """Make these the vaults, durably. The caller MUST hold `_changing`."""
        keyring = Keyring(self._generation + 1, tuple(vaults.values()))
        await asyncio.to_thread(self._store, keyring)
        await self._holding.share(keyring.generation)
        self._generation = keyring.generation
        self._by_id = dict(vaults)
        self._by_tenant = {vault.tenant: vault.vault_id for vault in vaults.values()}

    def _store(self, keyring: Keyring) -> None:
        with ending_when_broken():
            self._file.store(keyring, self._keyring_key.key, self._keyring_key.epoch)


def _is_in(place: tuple[bytes, int], part: VaultPart) -> bool:
    return place[0] == part.vault_id and part.epoch in (None, place[1])


def require_tenant_id(tenant: str) -> str:
    """Return what is a tenant's random id. Raises `TenantIdMalformed`."""
    if not _TENANT.fullmatch(tenant):
        raise TenantIdMalformed("a tenant's id is 32 lower-case hex characters")
    return tenant


def key_name(vault_id: bytes) -> str:
    """Return the name of a vault's half at the KMS."""
    return f"ledger-vault/{vault_id.hex()}"


def seal_for(vault: VaultKey, hpke_key: object, receiver_spiffe_id: str) -> SealedVaultKey:
    """Seal a vault key to the claim `hpke_key` of a router's evidence. Raises `HpkeKeyMissing`."""
    info = release_info(key_name(vault.vault_id), vault.epoch, receiver_spiffe_id)
    return SealedVaultKey(vault.vault_id, vault.epoch, seal(vault.key, hpke_key, info))
