"""It is responsible for the identity that nats-server shows, which is also what the broker shows to nats-server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from libs.identity.certificate import der_of, spki_of_certificate
from libs.identity.member import Member
from libs.rpc.tls import load_client_context


@dataclass(frozen=True, slots=True)
class Shown:
    """One certificate, its private key and the mesh CA, all PEM."""

    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes

    @property
    def spki_sha256(self) -> bytes:
        return sha256(spki_of_certificate(der_of(self.certificate_pem))).digest()

    def client_context(self) -> ssl.SSLContext:
        return load_client_context(ca_pem=self.ca_pem, key_pem=self.key_pem, certificate_pem=self.certificate_pem)


class Credentials(Protocol):
    """The identity that nats-server shows, and its next ones."""

    @property
    def current(self) -> Shown: ...

    @property
    def trust_domain(self) -> str: ...

    async def renewed(self) -> None:
        """Wait until the certificate is another one."""


class MemberCredentials:
    """A member's identity, as nats-server shows it."""

    def __init__(self, member: Member) -> None:
        self._member = member

    @property
    def current(self) -> Shown:
        current = self._member.identity.current
        return Shown(current.certificate.pem, current.key_pem, self._member.ca_pem)

    @property
    def trust_domain(self) -> str:
        return self._member.trust_domain

    async def renewed(self) -> None:
        await self._member.identity.renewed()
