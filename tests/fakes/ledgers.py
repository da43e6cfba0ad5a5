"""A publisher in front of a ledger that acknowledges at once, is silent, or makes its caller wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.issuer import Issuer
from libs.events.publish import Committed, Enqueued, LedgerUnavailable
from libs.events.records import parse_entry
from libs.events.vault import VaultKey
from libs.identity.peers import PeerUnavailable
from libs.policy.tenant_record import ApiKey
from libs.policy.vault_orders import VaultPart
from libs.transparency.acknowledgement import Acknowledgement
from libs.transparency.leaf import Kind
from services.router.admission.tenants import Tenant
from services.router.errors import LedgerUnavailable as VaultUnavailable
from tests.fakes.entry_schema import require_documented

TENANT = Tenant("ab" * 16, "Acme", ApiKey("one", "11" * 32))
OTHER_TENANT = Tenant("cd" * 16, "Other", ApiKey("two", "22" * 32))
VAULT = VaultKey(b"\x09" * 16, 3, b"\x02" * 32, TENANT.tenant_id)
ACKNOWLEDGEMENT = Acknowledgement(b"statement", b"leaf", 1, 1, (), 1, b"signature")


class LedgerTwin:
    """A publisher whose ledger acknowledges at once, or is silent, or makes the caller wait."""

    def __init__(self) -> None:
        self.issuer = Issuer(Ed25519PrivateKey.generate())
        self.entries: list[tuple[Kind, Mapping[str, Any], str | None]] = []
        self.cut: list[int] = []
        self.silent = False
        self.full = False
        self.is_admitted = True
        self.without_share: set[str] = set()
        """Tenants for whom there is no more room."""
        self.room_asked = asyncio.Semaphore(0)
        self.waits = False
        self.goes_on = asyncio.Event()
        """Set by a test: whoever waits is answered."""
        self.broken: Exception | None = None
        self.asked = asyncio.Event()
        self.vault_open = True
        self.vault_waits = False
        self.unopened: set[str] = set()
        """Tenants whose vaults alone cannot be opened."""
        self.silent_vaults: set[str] = set()
        """Tenants whose vaults nobody answers about."""
        self.opened_for: list[str] = []
        """Whose vaults were to be opened, in turn."""
        self.dropped: list[VaultPart] = []
        self.evidence_gone = False
        """Whether nobody knows any more whose evidence stands behind an acknowledgement."""
        self.copies_wait = False
        self.copies_go_on = asyncio.Event()
        self.logged: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()

    def require_room(self, *, tenant: str | None = None) -> None:
        if tenant is None:
            self.room_asked.release()
        if self.full or tenant in self.without_share:
            raise LedgerUnavailable("full", b"")

    async def key(self, tenant_id: str) -> VaultKey:
        assert tenant_id in (TENANT.tenant_id, OTHER_TENANT.tenant_id)
        self.opened_for.append(tenant_id)
        if self.vault_waits or tenant_id in self.silent_vaults:
            self.asked.set()
            await asyncio.Event().wait()
        if not self.vault_open or tenant_id in self.unopened:
            raise VaultUnavailable("the tenant's vault cannot be opened")
        return replace(VAULT, tenant=tenant_id)

    def drop(self, part: VaultPart) -> None:
        self.dropped.append(part)

    def now(self) -> tuple[bytes, dict[bytes, bytes | None]]:
        if self.evidence_gone:
            raise PeerUnavailable("the ledger's connection ended")
        return b"{}", {}

    async def until_copied(self) -> None:
        if self.copies_wait:
            self.asked.set()
            await self.copies_go_on.wait()

    async def commit(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        *,
        vault: VaultKey | None,
        timeout: float,
        amendment: Mapping[str, Any] | None = None,
        abandoned: Mapping[str, Any] | None = None,
        withheld: bool = True,
        meanwhile: Callable[[Committed], Awaitable[None]] | None = None,
    ) -> Committed:
        if self.broken is not None:
            raise self.broken
        sealed = self.issuer.seal(kind, body, vault)
        self._log(kind, parse_entry(sealed.canonical).body, sealed.tenant)
        try:
            if self.waits:
                self.asked.set()
                await self.goes_on.wait()
            if self.silent:
                if withheld:
                    self._amend(sealed.entry_id, amendment or {}, "not_released")
                raise LedgerUnavailable("no acknowledgement", sealed.entry_id)
            committed = Committed(
                sealed.entry_id, self.issuer.id, sealed.issuer_seq, sealed.salt, sealed.canonical, ACKNOWLEDGEMENT
            )
            if meanwhile is not None:
                await meanwhile(committed)
        except asyncio.CancelledError:
            if withheld:
                self._amend(sealed.entry_id, abandoned or {}, "not_released")
            raise
        return committed

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None) -> Enqueued:
        if self.full:
            raise LedgerUnavailable("full", b"")
        sealed = self.issuer.seal(kind, body, vault)
        self._log(kind, body, sealed.tenant)
        return Enqueued(sealed.entry_id, self.issuer.id, sealed.issuer_seq)

    def released(self, committed: Committed) -> None:
        self.cut.append(committed.issuer_seq)

    def withdrawn(self, committed: Committed, *, vault: VaultKey | None, amendment: Mapping[str, Any]) -> None:
        self._amend(committed.entry_id, amendment, "not_released")

    def uncertain(self, committed: Committed, *, vault: VaultKey | None) -> None:
        self._amend(committed.entry_id, {}, "release_unknown")

    def of(self, kind: Kind) -> list[Mapping[str, Any]]:
        return [body for logged, body, _ in self.entries if logged is kind]

    def _amend(self, entry_id: bytes, members: Mapping[str, Any], effect: str) -> None:
        self._log(Kind.AMENDMENT, {**members, "entry_id": entry_id.hex(), "effect": effect}, None)

    def _log(self, kind: Kind, body: Mapping[str, Any], tenant: str | None) -> None:
        require_documented(kind, body)
        self.entries.append((kind, body, tenant))
        self.logged.put_nowait(body)
