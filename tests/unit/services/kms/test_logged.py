"""What the log lacks of policies and revocations is recorded, each once; what it has is not said again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs import jcs
from libs.events.kinds import Kind
from libs.events.outbox import OutboxFull
from libs.identity.freshness import PolicyKeeper
from libs.policy.revocation import RevocationKind, parse_revocation
from libs.policy.signatures import parse_signed
from services.kms.decisions import Decisions
from services.kms.logged import Logged
from services.kms.pages import Place
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.running_kms import DecisionLog

TOKEN = b"token"


@pytest.fixture
def log() -> DecisionLog:
    return DecisionLog()


@pytest.fixture
def held(mesh: JoinedMesh, kms: KmsCore) -> PolicyKeeper:
    """Two policies and two revocations."""
    kms.policy.accept(mesh.successor(kms.policy.current))
    kms.policy.accept_revocations(mesh.revocation(RevocationKind.TENANT, f"{number:032x}") for number in (1, 2))
    return kms.policy


def start(held: PolicyKeeper, log: DecisionLog, place: Place) -> Logged:
    return Logged(held, Decisions(log), place)


def kinds(log: DecisionLog) -> list[Kind]:
    return [kind for kind, _ in log.outbox]


def everything(held: PolicyKeeper) -> Place:
    return Place(TOKEN, held.current.version, held.revocations.digest)


async def test_a_start_that_holds_what_the_log_has_records_nothing(held: PolicyKeeper, log: DecisionLog) -> None:
    logged = start(held, log, everything(held))
    assert logged.matches
    await logged.introduce()
    await logged.record()
    assert log.outbox == []
    assert logged.place(TOKEN) == everything(held)


async def test_a_log_that_was_not_read_yet_gets_the_policies_first(held: PolicyKeeper, log: DecisionLog) -> None:
    """The ledger judges a new KMS by them; the revocations wait until it is known which are missing."""
    logged = start(held, log, Place())
    await logged.introduce()
    assert log.outbox == [(Kind.POLICY, jcs.loads_object(held.signed(version))) for version in (1, 2)]
    await logged.introduce()
    await logged.record()
    await logged.record()
    assert kinds(log) == [Kind.POLICY, Kind.POLICY, Kind.REVOCATION, Kind.REVOCATION]


async def test_what_the_log_told_of_is_not_said_again(held: PolicyKeeper, log: DecisionLog) -> None:
    logged = start(held, log, Place())
    first, second = held.revocations.signed
    for version in (1, 2):
        logged.hear_policy(version, _digest(held, version))
    logged.hear_revocations([first])
    await logged.record()
    assert log.outbox == [(Kind.REVOCATION, jcs.loads_object(held.revocations.signed[second].document))]
    assert not start(held, log, logged.place(TOKEN)).matches
    logged.hear_revocations([first, second])
    assert logged.place(TOKEN) == everything(held)


async def test_what_an_outbox_lost_before_the_log_had_it_is_recorded(held: PolicyKeeper, log: DecisionLog) -> None:
    """The place tells what the log was heard to have, not what this KMS holds."""
    seed_alone = replace(everything(held), policy_version=1, revocations=b"\x11" * 32)
    logged = start(held, log, seed_alone)
    assert not logged.matches
    await logged.introduce()
    assert log.outbox == [(Kind.POLICY, jcs.loads_object(held.signed(2)))]
    await logged.record()
    assert kinds(log)[1:] == [Kind.REVOCATION, Kind.REVOCATION]


async def test_what_the_log_says_and_is_not_held_here_does_not_count(
    mesh: JoinedMesh, held: PolicyKeeper, log: DecisionLog
) -> None:
    logged = start(held, log, Place())
    logged.hear_policy(1, bytes(32))
    stranger = parse_revocation(mesh.revocation(RevocationKind.TENANT, "34" * 16)).revocation.id
    logged.hear_revocations([stranger])
    await logged.record()
    assert kinds(log) == [Kind.POLICY, Kind.POLICY, Kind.REVOCATION, Kind.REVOCATION]


async def test_a_full_outbox_stops_no_start_and_what_it_had_no_room_for_is_said_later(
    held: PolicyKeeper, log: DecisionLog
) -> None:
    log.full = True
    logged = start(held, log, Place())
    await logged.introduce()
    with pytest.raises(OutboxFull):
        await logged.record()
    log.full = False
    await logged.record()
    assert kinds(log) == [Kind.POLICY, Kind.POLICY, Kind.REVOCATION, Kind.REVOCATION]


async def test_a_disk_that_went_back_behind_the_log_does_not_match_it(held: PolicyKeeper, log: DecisionLog) -> None:
    assert not start(held, log, replace(everything(held), policy_version=3)).matches


def _digest(held: PolicyKeeper, version: int) -> bytes:
    return parse_signed(held.signed(version)).policy.digest
