"""Who is let in when policy changes: nobody is judged for the list, and whom a revocation names is off it at once."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import Leases
from libs.policy.revocation import RevocationKind
from services.broker.admission import Admission
from services.devtee.machine import Machine
from tests.fakes.certified_router import CertifiedRouter
from tests.fakes.joined_mesh import JoinedMesh, hear

ROUTERS = 3


class ServerTwin:
    """Remembers who is let in."""

    def __init__(self) -> None:
        self.lists: list[frozenset[bytes]] = []

    def admit(self, keys: frozenset[bytes]) -> None:
        self.lists.append(keys)

    async def until_admitted(self, key: bytes) -> None:
        """At once."""


class Broker:
    """A broker with a few leases, and what its nats-server was told."""

    def __init__(self, mesh: JoinedMesh) -> None:
        kms = mesh.kms()
        self.mesh = mesh
        self.keeper: PolicyKeeper = mesh.keeper("broker")
        self.leases = Leases(self.keeper, lambda: kms.ca.spki)
        self.server = ServerTwin()
        self.admission = Admission(self.leases, self.keeper, self.server, {"router"})
        routers = [CertifiedRouter(mesh, kms, time.time, str(number)) for number in range(ROUTERS)]
        for router in routers:
            self.leases.open(router.certificate, router.evidence.document)
        self.names = [router.certificate.spiffe_id for router in routers]
        self.keys = [router.certificate.spki_sha256 for router in routers]

    async def told(self) -> frozenset[bytes]:
        """The list as it is written for whoever asks to be let in now."""
        await self.admission.admit(self.keys[0])
        return self.server.lists[-1]

    def believe(self) -> None:
        hear(self.keeper, time.time())


@pytest.fixture
def broker() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        yield Broker(JoinedMesh(Path(folder), Machine.create(int(time.time()))))


async def test_a_list_has_nobody_judged_and_keeps_those_whose_turn_has_not_come(broker: Broker) -> None:
    before = broker.keeper.current
    broker.keeper.accept(broker.mesh.successor(before))
    broker.believe()
    keeping = asyncio.create_task(broker.admission.keep())
    await asyncio.sleep(0)
    assert broker.server.lists == [frozenset(broker.keys)]
    assert [lease.policy for _, lease in broker.leases.live()] == [before] * ROUTERS
    keeping.cancel()


async def test_whom_a_revocation_names_is_let_in_no_more_though_nobody_was_judged(broker: Broker) -> None:
    before = broker.keeper.current
    broker.keeper.accept_revocations([broker.mesh.revocation(RevocationKind.NODE, broker.names[-1])])
    broker.believe()
    broker.leases.end_named()
    assert await broker.told() == frozenset(broker.keys[:-1])
    assert [lease.policy for _, lease in broker.leases.live()] == [before] * (ROUTERS - 1)


async def test_who_was_judged_and_refused_is_let_in_no_more(broker: Broker) -> None:
    broker.keeper.accept(broker.mesh.successor(broker.keeper.current, roles=broker.mesh.without("router")))
    broker.believe()
    turns = broker.leases.judging()
    next(turns)
    assert await broker.told() == frozenset(broker.keys[1:])
    assert list(turns) == [None] * (ROUTERS - 1)
    assert await broker.told() == frozenset()
