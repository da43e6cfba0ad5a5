"""It is responsible for the sessions of foreign providers: logged for everybody, kept for whoever they are cited to.

A session that is not durable here MUST NOT be cited.
"""

from __future__ import annotations

from typing import Protocol

from libs import jcs
from libs.aci.session import session_id, verify_session
from libs.errors import MeshError
from libs.events.publish import Enqueued
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.router.errors import NotFound
from services.router.proof.kept_documents import KeptDocuments
from services.router.routing.foreign.adapter import Standing

_MAX_REMEMBERED = 10_000


class Log(Protocol):
    """What of a publisher is needed."""

    async def enqueue(self, kind: Kind, body: dict[str, object], *, vault: VaultKey | None) -> Enqueued: ...


class SessionRecord:
    """Keeps session documents, and logs each once."""

    def __init__(self, log: Log, documents: KeptDocuments) -> None:
        self._log = log
        self._documents = documents
        self._kept: set[str] = set()

    async def keep(self, standing: Standing) -> None:
        """Log and keep the session of a provider, and before it those that it rests on.

        Raises `OutboxFull`, `EntryTooLarge`, `ReceiptStoreFailed`; then the session is not to be used.
        """
        for document in (*standing.supporting, *([] if standing.session is None else [standing.session])):
            identifier = session_id(document)
            # Those too that were kept before: what no receipt has cited for a day is let go.
            await self._documents.put(bytes.fromhex(identifier), document)
            if identifier in self._kept:
                continue
            await self._log.enqueue(Kind.SESSION, jcs.loads_object(document), vault=None)
            if len(self._kept) >= _MAX_REMEMBERED:
                self._kept.clear()
            self._kept.add(identifier)

    async def find(self, identifier: str) -> bytes:
        """Return a session document that was kept, by this process or an earlier one. Raises `NotFound`."""
        document = await self._documents.find(bytes.fromhex(identifier))
        try:
            verify_session(document, identifier)
        except MeshError as error:
            raise NotFound("no such session") from error
        return document
