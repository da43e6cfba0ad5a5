"""It is responsible for tenants' vault keys: opened at the ledger, sealed to this router, kept for their month."""

from __future__ import annotations

import time

from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import MeshError
from libs.events.vault import VaultKey, vault_epoch
from libs.identity.ledger_writer import LedgerWriter
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.identity.sealed import ReceiverKey, release_info
from libs.policy.vault_orders import VaultPart
from libs.rpc.errors import remote_errors
from services.router.errors import LedgerUnavailable

_OPEN_SECONDS = 5.0
_MAX_KEPT = 100_000


class Vaults:
    """Vault keys by tenant."""

    def __init__(self, member: Member, ledger: Peer | LedgerWriter, receiver: ReceiverKey) -> None:
        self._member = member
        self._ledger = ledger
        self._receiver = receiver
        self._kept: dict[str, VaultKey] = {}
        self._drops = 0

    async def key(self, tenant_id: str) -> VaultKey:
        """Return the key that seals this tenant's entries now. Raises `LedgerUnavailable`, or the ledger's
        VAULT_ERASED, which waiting does not mend.
        """
        kept = self._kept.get(tenant_id)
        if kept is not None and kept.epoch == vault_epoch(time.time()):
            return kept
        drops = self._drops
        try:
            stub = ledger_pb2_grpc.LedgerServiceStub(await self._ledger.channel(_OPEN_SECONDS))
            with remote_errors():
                response = await stub.OpenVault(ledger_pb2.OpenVaultRequest(tenant_id=tenant_id), timeout=_OPEN_SECONDS)
            name = f"ledger-vault/{response.vault_id.hex()}"
            info = release_info(name, response.vault_epoch, self._member.spiffe_id)
            opened = VaultKey(
                response.vault_id, response.vault_epoch, self._receiver.open(response.sealed_key, info), tenant_id
            )
        except MeshError as error:
            if error.reason == "VAULT_ERASED":
                raise
            raise LedgerUnavailable(f"the tenant's vault cannot be opened: {error.reason}") from error
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        if drops == self._drops:  # Or it may be the very one that was dropped while it was on its way.
            self._kept[tenant_id] = opened
        return opened

    def drop(self, part: VaultPart) -> None:
        """Forget the key of a vault, or of a month of it: it is closed, or the ledger refuses what it seals."""
        self._drops += 1
        self._kept = {
            tenant: key
            for tenant, key in self._kept.items()
            if key.vault_id != part.vault_id or part.epoch not in (None, key.epoch)
        }
