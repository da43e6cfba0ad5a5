"""It is responsible for the public HTTPS listener: its address, and certificates that are renewed while it serves."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import Code, MeshError
from libs.https.application import serving_application
from libs.https.listening import PortTaken
from libs.identity.certificate import key_pem, make_csr, pem_of
from libs.rpc.errors import remote_errors
from libs.rpc.tls import load_server_context
from services.ledger.keys import KmsChannel, while_away

_CALL_SECONDS = 5.0
_RETRY_SECONDS = 60.0

log = structlog.get_logger()


class CannotListen(MeshError):
    """The HTTPS listener's address cannot be listened on."""

    code = Code.UNAVAILABLE
    reason = "CANNOT_LISTEN"


@dataclass(frozen=True, slots=True)
class OutwardCertificate:
    """The listener's key and chain, for one certificate's life."""

    key_pem: bytes
    certificate_pem: bytes
    not_before: float
    not_after: float


class Certifying(Protocol):
    """Who certifies the listener's keys."""

    async def certify(self) -> OutwardCertificate: ...


class OutwardAuthority:
    """Has the listener's key certified by the KMS, for the names that the operator configured."""

    def __init__(self, kms: KmsChannel, dns_names: Sequence[str], ip_addresses: Sequence[str]) -> None:
        self._kms = kms
        self._dns_names = tuple(dns_names)
        self._ip_addresses = tuple(ip_addresses)

    async def certify(self) -> OutwardCertificate:
        """Return a certificate over a fresh key. Raises the KMS's refusal."""
        key = ec.generate_private_key(ec.SECP256R1())
        stub = kms_pb2_grpc.KmsServiceStub(await self._kms.channel(_CALL_SECONDS))
        request = kms_pb2.IssueServerCertificateRequest(
            csr=make_csr(key), dns_names=self._dns_names, ip_addresses=self._ip_addresses
        )
        with remote_errors():
            response = await stub.IssueServerCertificate(request, timeout=_CALL_SECONDS)
        certificate = x509.load_der_x509_certificate(response.certificate)
        return OutwardCertificate(
            key_pem(key),
            pem_of(response.certificate),
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )


@asynccontextmanager
async def serving_https(address: str, authority: Certifying, application: web.Application) -> AsyncIterator[int]:
    """Serve on "host:port" while the body runs, under certificates renewed at half life. Yields the port.

    Waits for the KMS. Raises `CannotListen`, `AddressMalformed`, or the KMS's refusal of the names.
    """
    certificate = await while_away(authority.certify, "https certificate")
    context = _Current(certificate)
    async with AsyncExitStack() as listening:
        try:
            port = await listening.enter_async_context(serving_application(address, application, context.listener))
        except PortTaken as error:
            raise CannotListen(str(error)) from error
        async with asyncio.TaskGroup() as tasks:
            renewing = tasks.create_task(_renew(authority, certificate, context))
            yield port
            renewing.cancel()


class _Current:
    """The listener's TLS: each new connection is switched to the newest certificate."""

    def __init__(self, certificate: OutwardCertificate) -> None:
        self.listener = self._newest = _context_of(certificate)
        # Called for every handshake, whether or not the client names a server.
        self.listener.sni_callback = self._switch

    def renew(self, certificate: OutwardCertificate) -> None:
        self._newest = _context_of(certificate)

    def _switch(self, session: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        session.context = self._newest


def _context_of(certificate: OutwardCertificate) -> ssl.SSLContext:
    return load_server_context(key_pem=certificate.key_pem, certificate_pem=certificate.certificate_pem)


async def _renew(authority: Certifying, certificate: OutwardCertificate, current: _Current) -> None:
    """Replace the certificate at half life."""
    while True:
        await asyncio.sleep(max((certificate.not_before + certificate.not_after) / 2 - time.time(), 0))
        try:
            certificate = await authority.certify()
        except MeshError as error:
            log.warning("the https certificate is not renewed", reason=error.reason, detail=str(error))
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            current.renew(certificate)
