"""Responsible for the receipts that an earlier start left open: each is amended by what is known of its response."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from itertools import chain

import structlog

from libs.errors import MeshError
from libs.events.outbox import Outbox
from libs.events.outbox_items import Cut
from libs.events.outbox_state import Uncut
from libs.events.vault import VaultKey
from libs.events.vault_opening import OpenVault, open_each
from libs.transparency.leaf import Kind

NOT_RELEASED = "not_released"
RELEASE_UNKNOWN = "release_unknown"
_RETRY_SECONDS = 2.0
_VAULT_GONE = "VAULT_ERASED"

Amend = Callable[[Cut, str, VaultKey], None]
"""Submits the amendment that a record's response had this effect. Raises a `MeshError` while there is no room."""

log = structlog.get_logger()


async def amend_left_open(outbox: Outbox, amend: Amend, open_vault: OpenVault | None) -> None:
    """Amend every receipt that is open; try until all are.

    Vaults are opened together: each may take seconds, for which other tenants' amendments would wait.
    """
    waiting = _receipts(outbox)
    if open_vault is None:
        for uncut in chain.from_iterable(waiting.values()):
            entry_id = uncut.entry_id.hex()
            log.error("an earlier receipt is open, and this service opens no vaults", entry_id=entry_id)
        return

    async def opened(tenant: str, vault: VaultKey | MeshError) -> None:
        waiting[tenant] = [uncut for uncut in waiting[tenant] if not _settle(uncut, vault, outbox, amend)]
        if not waiting[tenant]:
            del waiting[tenant]

    while waiting:
        await open_each([*waiting], open_vault, opened)
        if waiting:
            await asyncio.sleep(_RETRY_SECONDS)


def _receipts(outbox: Outbox) -> dict[str, list[Uncut]]:
    """Return what is open, by tenant. What is no tenant's receipt is closed: nothing was withheld for it."""
    receipts: defaultdict[str, list[Uncut]] = defaultdict(list)
    for uncut in chain.from_iterable(map(outbox.state.uncut, outbox.earlier)):
        if uncut.facts.kind is Kind.RECEIPT and uncut.facts.tenant is not None:
            receipts[uncut.facts.tenant].append(uncut)
        else:
            outbox.append(Cut(uncut.issuer, uncut.issuer_seq))
    return dict(receipts)


def _settle(uncut: Uncut, vault: VaultKey | MeshError, outbox: Outbox, amend: Amend) -> bool:
    """Say whether nothing more is to be said of it."""
    cut, entry_id = Cut(uncut.issuer, uncut.issuer_seq), uncut.entry_id.hex()
    effect = RELEASE_UNKNOWN if uncut.acknowledged else NOT_RELEASED
    try:
        if not isinstance(vault, MeshError):
            amend(cut, effect, vault)
            log.warning("earlier receipt amended", entry_id=entry_id, effect=effect)
            return True
        refusal = vault
    except MeshError as error:
        refusal = error
    if refusal.reason == _VAULT_GONE:
        # The entry can be read by nobody any more, and neither could its amendment.
        outbox.append(cut)
        return True
    log.warning("amendment waits", entry_id=entry_id, reason=refusal.reason)
    return False
