"""It is responsible for the session documents that this router has from the registry, each believed by its digest.

A registry can make up any number of them, none of which is a node's: what is kept of them all has a bound.
"""

from __future__ import annotations

from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.aci.session import verify_session
from libs.identity.any_peer import Channels
from libs.rpc.errors import remote_errors

_CALL_SECONDS = 5.0
_MAX_OCTETS = 256 * 1024 * 1024


class SessionDocuments:
    """Sessions by id, fetched when they are first asked for; those that came first go first."""

    def __init__(self, registry: Channels, max_octets: int = _MAX_OCTETS) -> None:
        self._registry = registry
        self._max_octets = max_octets
        self._octets = 0
        self._documents: dict[str, bytes] = {}

    async def get(self, session_id: str) -> bytes:
        """Return a document. Raises the registry's `SESSION_UNKNOWN`, what keeps the registry away, and what
        `verify_session` raises.
        """
        known = self._documents.get(session_id)
        if known is not None:
            return known
        document = await self._fetch(bytes.fromhex(session_id))
        verify_session(document, session_id)
        self._keep(session_id, document)
        return document

    def _keep(self, session_id: str, document: bytes) -> None:
        if session_id in self._documents:
            return  # Somebody else has fetched it meanwhile.
        self._documents[session_id] = document
        self._octets += len(document)
        while self._octets > self._max_octets:
            self._octets -= len(self._documents.pop(next(iter(self._documents))))

    async def _fetch(self, session_id: bytes) -> bytes:
        stub = registry_pb2_grpc.ProviderRegistryServiceStub(await self._registry.channel(_CALL_SECONDS))
        with remote_errors():
            response = await stub.GetSession(
                registry_pb2.GetSessionRequest(session_id=session_id), timeout=_CALL_SECONDS
            )
        return response.document
