"""It is responsible for this router's copies of receipts that the ledger holds, with the sessions that they cite."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Set

import structlog
from teemesh.ledger.v1 import acknowledgement_pb2

from libs.aci.receipt import Receipt
from libs.aci.receipt_events import UpstreamVerified
from libs.client.chain import cited_by, foreign_link
from libs.errors import MeshError
from libs.events.publish import Committed
from libs.events.vault import VaultKey
from libs.transparency.acknowledgement import Acknowledgement
from services.router.proof.commitments import Attested
from services.router.proof.kept_receipts import KeptReceipts, StoredReceipt
from services.router.proof.put_off import WaitingReceipt

_MAX_KEPT_SESSIONS = 10_000

FindSession = Callable[[str], Awaitable[bytes]]
"""Returns a session document by its id."""

log = structlog.get_logger()


class ReceiptCopies:
    """Keeps copies. The ledger has each receipt already: when this disk fails, only the copy is missing."""

    def __init__(self, kept: KeptReceipts, attested: Attested, session: FindSession) -> None:
        self._kept = kept
        self._attested = attested
        self._session = session
        self._kept_sessions: set[str] = set()
        """Lately kept by this process: they need not be looked for again."""
        self._keeping: set[asyncio.Task[None]] = set()

    async def keep_to_the_end(
        self, receipt: WaitingReceipt, cited: Set[str], committed: Committed, vault: VaultKey
    ) -> None:
        """Do what `keep` does, whatever becomes of the caller."""
        keeping = asyncio.get_running_loop().create_task(self.keep(receipt, cited, committed, vault))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        await asyncio.shield(keeping)

    async def keep(self, receipt: WaitingReceipt, cited: Set[str], committed: Committed, vault: VaultKey) -> None:
        """Keep a copy, and the sessions that it cites, by their ids."""
        try:
            attested, documents = self._attested.now()
            sessions = await self._sessions(cited)
            stored = await self._kept.put(
                StoredReceipt(
                    receipt_id=receipt.receipt_id,
                    chat_id=receipt.chat_id,
                    tenant_id=receipt.tenant_id,
                    receipt=receipt.receipt,
                    entry=committed.entry,
                    salt=committed.salt,
                    entry_id=committed.entry_id,
                    issuer_seq=committed.issuer_seq,
                    acknowledgement=_to_wire(committed.acknowledgement).SerializeToString(),
                    attested=attested,
                    vault_id=vault.vault_id,
                    vault_epoch=vault.epoch,
                ),
                {**documents, **{bytes.fromhex(name): document for name, document in sessions.items()}},
            )
        except MeshError as error:
            log.error("a receipt is in the ledger alone", receipt=receipt.receipt_id, reason=error.reason)
            return
        if stored:
            self._remember_sessions(name for name, document in sessions.items() if document is not None)

    async def _sessions(self, cited: Set[str]) -> dict[str, bytes | None]:
        """Return the sessions that a receipt cites, which stay with it: the registry keeps them by its own bounds."""
        sessions: dict[str, bytes | None] = {}
        for name in cited:
            sessions[name] = None
            if name in self._kept_sessions:
                continue
            try:
                sessions[name] = await self._session(name)
            except MeshError as error:
                log.warning("a session is not kept with its receipt", session=name, reason=error.reason)
        return sessions

    def _remember_sessions(self, kept: Iterable[str]) -> None:
        """MUST come after they are on disk: the receipts that cite one which is remembered bring no document of it."""
        for name in kept:
            if len(self._kept_sessions) >= _MAX_KEPT_SESSIONS:
                self._kept_sessions.clear()
            self._kept_sessions.add(name)


def sessions_of(receipt: Receipt) -> set[str]:
    """Name the sessions behind an answer: this router's about who served, and a provider's own behind that."""
    cited = {event.session_id for event in receipt.events if isinstance(event, UpstreamVerified)}
    link = foreign_link(receipt)
    return cited | ({behind} if link is not None and (behind := cited_by(link)) is not None else set())


def _to_wire(acknowledgement: Acknowledgement) -> acknowledgement_pb2.Acknowledgement:
    return acknowledgement_pb2.Acknowledgement(
        statement=acknowledgement.statement,
        leaf_data=acknowledgement.leaf_data,
        first=acknowledgement.first,
        count=acknowledgement.count,
        path=acknowledgement.path,
        signer_epoch=acknowledgement.signer_epoch,
        signature=acknowledgement.signature,
    )
