"""A broker, a ledger that answers, and a router that publishes: each real enough to be killed."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.events.acknowledgements import LedgerPeer
from libs.events.connect import NatsLink, connect_nats
from libs.events.consume import ensure_stream
from libs.events.publish import EventSettings, Publisher, open_publisher
from libs.events.sending import Timing
from libs.events.vault import VaultKey
from libs.events.vault_opening import OpenVault
from tests.fakes.ledger_answers import FakeLedger, FakePeer, reading, serve_ledger
from tests.fakes.let_in import LetIn
from tests.fakes.nats_broker import NatsBroker, nats_broker
from tests.fakes.throwaway_ca import Files, ThrowawayCa

TENANT = "ef" * 16
VAULT = VaultKey(b"\x09" * 16, 3, b"\x02" * 32, TENANT)
OTHER_TENANT = "ee" * 16
OTHER_VAULT = VaultKey(b"\x08" * 16, 3, b"\x03" * 32, OTHER_TENANT)
VAULTS = {TENANT: VAULT, OTHER_TENANT: OTHER_VAULT}
FAST = Timing(linger_seconds=0.002, publish_seconds=1.0, resend_seconds=0.1)


@dataclass(frozen=True, slots=True)
class FakeCertificate:
    der: bytes


@dataclass(frozen=True, slots=True)
class FakeEvidence:
    document: bytes
    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FakeCredential:
    certificate: FakeCertificate
    evidence: FakeEvidence


@dataclass(frozen=True, slots=True)
class FakeIdentity:
    current: FakeCredential


@dataclass(frozen=True, slots=True)
class FakeMember:
    """A router that has joined."""

    ca: ThrowawayCa
    files: Files
    identity: FakeIdentity
    role: str = "router"
    instance: str = "one"
    trust_domain: str = "mesh.test"

    def broker(self, target: str) -> LetIn:
        return LetIn(lambda: self.ca.client_context(self.files))


def member_with(ca: ThrowawayCa, files: Files, log_key: Ed25519PrivateKey) -> FakeMember:
    claims = {"role": "router", "log_key": log_key.public_key().public_bytes_raw().hex()}
    evidence = FakeEvidence(jcs.dumps({"claims": claims}), claims)
    return FakeMember(ca, files, FakeIdentity(FakeCredential(FakeCertificate(b"certificate"), evidence)))


async def vault_of(tenant: str) -> VaultKey:
    return VAULTS[tenant]


@dataclass(slots=True)
class Mesh:
    """Everything around one publisher."""

    folder: Path
    ca: ThrowawayCa
    broker: NatsBroker
    link: NatsLink
    ledger: FakeLedger
    peer: FakePeer
    router_files: Files
    log_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def publisher(
        self,
        outbox: str = "outbox",
        peer: LedgerPeer | None = None,
        timing: Timing = FAST,
        open_vault: OpenVault = vault_of,
    ) -> AbstractAsyncContextManager[Publisher]:
        """A new process start: a fresh log key, the same outbox."""
        self.log_key = Ed25519PrivateKey.generate()
        return open_publisher(
            member_with(self.ca, self.router_files, self.log_key),
            EventSettings(self.broker.url, "127.0.0.1:9", self.folder / outbox),
            peer or self.peer,
            log_key=self.log_key,
            open_vault=open_vault,
            timing=timing,
        )

    def reading(self) -> AbstractAsyncContextManager[None]:
        return reading(self.ledger, self.link)


@pytest.fixture
def ca(tmp_path: Path) -> ThrowawayCa:
    return ThrowawayCa(tmp_path)


@pytest.fixture
async def broker(tmp_path: Path, ca: ThrowawayCa) -> AsyncIterator[NatsBroker]:
    async with nats_broker(tmp_path, ca) as running:
        yield running


@pytest.fixture
def ledger_tls(ca: ThrowawayCa) -> Callable[[], ssl.SSLContext]:
    files = ca.issue("ledger.mesh.test", "ledger")
    return lambda: ca.client_context(files)


@pytest.fixture
async def link(broker: NatsBroker, ledger_tls: Callable[[], ssl.SSLContext]) -> AsyncIterator[NatsLink]:
    """The ledger's connection, with its stream made."""
    async with connect_nats(
        broker.url, LetIn(ledger_tls), server_name="broker.mesh.test", name="ledger/one", inbox_prefix="_INBOX_ledger"
    ) as connected:
        await ensure_stream(connected, 1, max_bytes=64 * 1024 * 1024, replicas=1, timeout=10.0)
        yield connected


@pytest.fixture
async def mesh(tmp_path: Path, ca: ThrowawayCa, broker: NatsBroker, link: NatsLink) -> AsyncIterator[Mesh]:
    ledger = FakeLedger("mesh.test/ledger/1")
    router = ca.issue("router.mesh.test", "router")
    async with serve_ledger(ledger, tmp_path) as peer:
        yield Mesh(tmp_path, ca, broker, link, ledger, peer, router)
