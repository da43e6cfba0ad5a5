"""It is responsible for the router's own copies of what it logged of tenants' use, which their tenant alone is given.

They are as erasable as receipts are, and as those they prove nothing by themselves: each names its entry in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs import jcs
from libs.events.vault import VaultKey
from services.router.proof.kept_usage import KeptUsage, StoredUsage


class UsageCopies:
    """Copies of entries, as entries have them."""

    def __init__(self, kept: KeptUsage) -> None:
        self._kept = kept

    async def keep(self, vault: VaultKey, entry_id: bytes, body: Mapping[str, Any]) -> None:
        """See `admission.usage.Keep`. Raises `ReceiptStoreFailed`."""
        document = jcs.dumps(dict(body))
        await self._kept.put(StoredUsage(vault.tenant, vault.vault_id, vault.epoch, entry_id, document))

    async def page(self, tenant_id: str, before: int | None) -> dict[str, Any]:
        """Return a tenant's entries, the newest first, those of a page before a place. Raises `ReceiptStoreFailed`."""
        found, following = await self._kept.page(tenant_id, before)
        entries = [{"entry_id": each.entry_id.hex(), **jcs.loads_object(each.body)} for each in found]
        return {"entries": entries, "before": following}
