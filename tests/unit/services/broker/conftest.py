"""A throwaway mesh CA and a real nats-server under it."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from libs.identity.certificate import Subject, issue, key_pem, pem_of
from services.broker.configuration import ServerSettings
from services.broker.credentials import Shown
from services.broker.supervision import Broker, NatsSettings, open_broker

TRUST_DOMAIN = "mesh.test"


class ThrowawayCa:
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throwaway CA")])
        self.now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - dt.timedelta(minutes=5))
            .not_valid_after(self.now + dt.timedelta(hours=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.der = certificate.public_bytes(Encoding.DER)

    def credential(self, role: str, instance: str = "1") -> Shown:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = Subject(TRUST_DOMAIN, role, instance, evidence_digest=bytes(32))
        certificate = issue(subject, key.public_key(), self.key, self.der, now=self.now.timestamp())
        return Shown(pem_of(certificate), key_pem(key), pem_of(self.der))


class Credentials:
    """The broker's identity; `renew` gives it another certificate."""

    trust_domain = TRUST_DOMAIN

    def __init__(self, ca: ThrowawayCa) -> None:
        self._ca = ca
        self._renewed = asyncio.Event()
        self.current = ca.credential("broker")

    def renew(self) -> None:
        self.current = self._ca.credential("broker")
        self._renewed.set()

    async def renewed(self) -> None:
        await self._renewed.wait()
        self._renewed.clear()


class Mesh:
    """A CA, a broker, and what it takes to reach it."""

    def __init__(self, ca: ThrowawayCa, credentials: Credentials, broker: Broker, state: Path) -> None:
        self.ca = ca
        self.credentials = credentials
        self.broker = broker
        self.state = state
        self.admitted: frozenset[bytes] = frozenset()

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.broker.port}"

    async def context(self, role: str) -> ssl.SSLContext:
        """The TLS context of a client whose key is let in."""
        shown = self.ca.credential(role)
        await self.let_in(shown)
        return shown.client_context()

    def signal(self, number: signal.Signals) -> None:
        """Signal nats-server."""
        assert self.broker.pid is not None
        os.kill(self.broker.pid, number)

    async def let_in(self, shown: Shown) -> None:
        self.admitted |= {shown.spki_sha256}
        self.broker.admit(self.admitted)
        async with asyncio.timeout(20):
            await self.broker.until_admitted(shown.spki_sha256)

    async def turn_away(self, shown: Shown) -> None:
        """Let a key in no more, and wait until nats-server knows."""
        self.admitted -= {shown.spki_sha256}
        self.broker.admit(self.admitted)
        # Another key is let in only once nats-server has read all of it.
        await self.context("ledger")


@asynccontextmanager
async def running_mesh(state: Path, *, check_seconds: float) -> AsyncIterator[Mesh]:
    ca = ThrowawayCa()
    credentials = Credentials(ca)
    async with open_broker(
        "broker-test", NatsSettings(port=-1), credentials, state, check_seconds=check_seconds
    ) as broker:
        await broker.until_ready()
        yield Mesh(ca, credentials, broker, state)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path / "state", check_seconds=3600) as mesh:
        yield mesh


@pytest.fixture
def server(tmp_path: Path) -> ServerSettings:
    return ServerSettings("broker", "127.0.0.1", -1, TRUST_DOMAIN, tmp_path, 1 << 20, tmp_path / "a", tmp_path / "b")
