"""A KMS that starts often: the log gets the policies and revocations that it lacks, and none twice.

The ledger is the real process; each start opens the KMS's keys anew over its folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.events.kinds import Kind
from libs.identity.freshness import PolicyKeeper
from libs.policy.revocation import RevocationKind
from libs.transparency import leaf
from services.kms.publication import Publication
from services.kms.revocation import Revocations
from tests.fakes.joined_mesh import JoinedMesh

from .live import LiveMesh
from .test_kms_reading import reading, until_current, until_logged

OF_OPERATORS = (Kind.POLICY, Kind.REVOCATION)


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


class CountingKeeper(PolicyKeeper):
    """Counts how often it is given revocations."""

    given = 0

    def accept_revocations(self, signed: Iterable[bytes]) -> None:
        documents = list(signed)
        self.given += bool(documents)
        super().accept_revocations(documents)


async def logged(live: LiveMesh) -> Counter[Kind]:
    """What operators signed, in the log, once all that the KMS has said so far is there."""
    await live.decisions.record({"decision": "released", "name": "models/a"})
    stub = ledger_pb2_grpc.LedgerServiceStub(await live.member.peer("ledger", live.target).channel(10))
    request = ledger_pb2.TailRequest(from_index=0, max_batch=256, kinds=[int(kind) for kind in OF_OPERATORS])
    return Counter(
        [
            leaf.parse(entry.leaf_data).kind
            async for message in stub.Tail(request, timeout=30)
            for entry in message.entries
        ]
    )


async def start_again(live: LiveMesh) -> None:
    """As a process that starts: open, introduce, read the log until it has everything."""
    keys, log_reading = live.key_service()
    await live.logged.introduce()
    async with reading(log_reading):
        await until_current(keys)
        await until_logged(live, keys)
    await until_logged(live)


async def test_starts_say_nothing_of_what_the_log_has(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    kms = live.kms.policy
    await Publication(kms, live.decisions).publish(live.mesh.successor(kms.current))
    await Revocations(kms, live.decisions).revoke(live.mesh.revocation(RevocationKind.TENANT, "12" * 16))
    await until_logged(live)
    for _ in range(3):
        await start_again(live)
    assert await logged(live) == {Kind.POLICY: 2, Kind.REVOCATION: 1}


async def test_what_never_reached_the_log_is_said_at_the_next_start_and_never_again(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    kms = live.kms.policy
    await until_logged(live)  # Else the next start does not know yet that the log has what this one said.
    # As if the outbox had been lost.
    kms.accept(live.mesh.successor(kms.current))
    kms.accept_revocations([live.mesh.revocation(RevocationKind.TENANT, "12" * 16)])
    for _ in range(3):
        await start_again(live)
        assert await logged(live) == {Kind.POLICY: 2, Kind.REVOCATION: 1}


async def test_without_its_book_a_start_reads_the_log_before_it_says_a_revocation_again(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    kms = live.kms.policy
    await Revocations(kms, live.decisions).revoke(live.mesh.revocation(RevocationKind.TENANT, "12" * 16))
    await until_logged(live)
    for _ in range(2):
        (live.mesh.folder / "keys.sealed").unlink(missing_ok=True)
        await start_again(live)
    assert (await logged(live))[Kind.REVOCATION] == 1


async def test_the_revocations_of_one_message_are_learned_at_once(live: LiveMesh, tmp_path: Path) -> None:
    await live.start()
    await until_current(live.keys)
    kms = live.kms.policy
    for number in range(20):
        signed = live.mesh.revocation(RevocationKind.TENANT, f"{number:032x}")
        await Revocations(kms, live.decisions).revoke(signed)
    await until_logged(live)
    fresh = CountingKeeper(tmp_path / "fresh", live.mesh.seed, live.mesh.anchors("kms"))
    keys, log_reading = live.key_service(policy=fresh)
    async with reading(log_reading):
        await until_current(keys)
    assert fresh.revocations.digest == kms.revocations.digest
    assert fresh.given == 1
