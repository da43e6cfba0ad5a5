"""It is responsible for the shares that a log cannot do without: of open months with entries."""

from __future__ import annotations

from collections.abc import Callable

from libs.events.vault import PUBLIC_VAULT_ID
from services.ledger.storage import keyring
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.index import Index
from services.ledger.vaults.erasures import Erasures


def require_shares(index: Index, erasures: Erasures, holds: Callable[[bytes, int], bool]) -> None:
    """Raise `LogDamaged` where entries open for nobody any more, though the log does not say that they were erased.

    `holds` says of a vault and a month whether their share is there.
    """
    for sealed in index.sealed_under():
        is_open = sealed.vault_id == PUBLIC_VAULT_ID or holds(sealed.vault_id, sealed.epoch)
        if not is_open and erasures.closing(sealed.vault_id, sealed.epoch) is None:
            raise LogDamaged(keyring.NAME, 0, f"the share of the vault of entry {sealed.index} is missing")
