"""It is responsible for having the broker let this service in: its key has a lease there before NATS is shown it.

What a NATS connection shows is what a connection to the broker's mesh listener showed before it, evidence and all.
"""

from __future__ import annotations

import asyncio
import ssl

import structlog
from teemesh.broker.v1 import broker_pb2, broker_pb2_grpc

from libs.errors import MeshError
from libs.identity.certificate import pem_of
from libs.identity.peers import Peer
from libs.identity.renewal import Identity
from libs.rpc.errors import remote_errors
from libs.rpc.tls import load_client_context

_RETRY_SECONDS = 1.0
_CONNECT_SECONDS = 5.0

log = structlog.get_logger()


class BrokerAdmission:
    """One NATS client's way in."""

    def __init__(self, peer: Peer, identity: Identity) -> None:
        """`peer` is the broker's mesh listener."""
        self._peer = peer
        self._identity = identity
        self._shown = identity.current

    async def admit(self, timeout: float) -> None:
        """Return once the broker lets in the newest key that it has accepted. Raises its refusal, or why it is away."""
        link = await self._peer.link(timeout)
        stub = broker_pb2_grpc.BrokerServiceStub(link.channel)
        with remote_errors():
            await stub.Admit(broker_pb2.AdmitRequest(), timeout=timeout)
        self._shown = link.credential

    def tls_context(self) -> ssl.SSLContext:
        """A TLS 1.3 client context with the certificate that was let in last."""
        shown = self._shown
        return load_client_context(
            ca_pem=pem_of(self._identity.ca_certificate), key_pem=shown.key_pem, certificate_pem=shown.certificate.pem
        )

    async def renewed(self) -> None:
        """Wait until the broker has accepted a later key than the one that was let in last."""
        while True:
            if self._identity.current is self._shown:
                await self._identity.renewed()
            try:
                if (await self._peer.link(_CONNECT_SECONDS)).credential is not self._shown:
                    return
            except MeshError as error:
                log.info("the broker has not seen the next key yet", reason=error.reason, detail=str(error))
            # The next connection to the broker is being made in the background.
            await asyncio.sleep(_RETRY_SECONDS)
