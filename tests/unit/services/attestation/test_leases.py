"""Which leases are live is the registry's word; what they rest on is not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from teemesh.registry.v1 import registry_pb2 as pb

from services.attestation.leases import LiveLeases
from tests.fakes.joined_mesh import Clock


def provider(name: str, until: float, **changes: Any) -> pb.Provider:
    given: dict[str, Any] = {"endpoint": "127.0.0.1:1", "evidence_digest": bytes(32), "spki_sha256": bytes(32)}
    return pb.Provider(spiffe_id=name, lease_until_ms=int(until * 1000), **{**given, **changes})


def snapshot(*providers: pb.Provider) -> pb.WatchResponse:
    return pb.WatchResponse(snapshot=pb.Snapshot(providers=providers))


@pytest.fixture
def clock() -> Clock:
    return Clock(1_790_000_000.0)


@pytest.fixture
def leases(clock: Clock) -> LiveLeases:
    """These tests hand it the registry's words themselves, so there is nobody to follow."""
    return LiveLeases(cast(Any, None), clock)


def test_leases_come_change_and_end(leases: LiveLeases, clock: Clock) -> None:
    until = clock.now + 15
    leases.take(snapshot(provider("one", until), provider("two", until)))
    assert set(leases.listed) == {"one", "two"}
    leases.take(pb.WatchResponse(changed=provider("one", until, evidence_digest=b"x" * 32)))
    leases.take(pb.WatchResponse(ended="two"))
    assert {name: listed.evidence_digest for name, listed in leases.listed.items()} == {"one": b"x" * 32}
    leases.take(snapshot(provider("three", until)))
    assert set(leases.listed) == {"three"}
    assert leases.heard_at == clock.now


def test_a_lease_runs_out_while_the_registry_is_away(leases: LiveLeases, clock: Clock) -> None:
    leases.take(snapshot(provider("one", clock.now + 15)))
    clock.now += 16
    assert not leases.listed


@pytest.mark.parametrize(
    "changes",
    [{"evidence_digest": b""}, {"spki_sha256": b"short"}, {"endpoint": "a" * 301}],
    ids=lambda each: str(*each),
)
def test_a_lease_that_names_nothing_is_live_and_cannot_be_judged(
    leases: LiveLeases, clock: Clock, changes: dict[str, Any]
) -> None:
    leases.take(snapshot(provider("one", clock.now + 15, **changes)))
    assert (leases.listed, leases.unsound) == ({}, {"one": "LEASE_MALFORMED"})
    clock.now += 16
    assert not leases.unsound


def test_a_snapshot_is_all_that_there_is(leases: LiveLeases, clock: Clock) -> None:
    until = clock.now + 15
    leases.take(snapshot(provider("sound", until), provider("unsound", until, spki_sha256=b"")))
    leases.take(snapshot(provider("new", until)))
    assert (set(leases.listed), leases.unsound) == ({"new"}, {})


def test_a_change_for_the_worse_takes_the_place_of_what_was_sound(leases: LiveLeases, clock: Clock) -> None:
    leases.take(snapshot(provider("one", clock.now + 15)))
    leases.take(pb.WatchResponse(changed=provider("one", clock.now + 30, evidence_digest=b"")))
    assert (leases.listed, leases.unsound) == ({}, {"one": "LEASE_MALFORMED"})
    leases.take(pb.WatchResponse(changed=provider("one", clock.now + 30)))
    assert (set(leases.listed), leases.unsound) == ({"one"}, {})


def test_a_name_without_end_is_kept_in_part_and_can_end(leases: LiveLeases, clock: Clock) -> None:
    name = "spiffe://mesh.test/node/" + "x" * 100_000
    leases.take(pb.WatchResponse(changed=provider(name, clock.now + 15)))
    assert leases.unsound == {name[:256]: "LEASE_MALFORMED"}
    leases.take(pb.WatchResponse(ended=name))
    assert not leases.unsound


def test_leases_that_are_too_many_to_judge_are_counted(leases: LiveLeases, clock: Clock) -> None:
    until = clock.now + 15
    leases.take(snapshot(*(provider(f"node-{number}", until) for number in range(10_001))))
    assert (len(leases.listed), leases.unsound) == (10_000, {"node-10000": "TOO_MANY_LEASES"})
    # A known one may go on; one that leaves makes room.
    leases.take(pb.WatchResponse(changed=provider("node-0", until, evidence_digest=b"x" * 32)))
    assert leases.listed["node-0"].evidence_digest == b"x" * 32
    leases.take(pb.WatchResponse(ended="node-1"))
    leases.take(pb.WatchResponse(changed=provider("node-10000", until)))
    assert (len(leases.listed), leases.unsound) == (10_000, {})


def test_leases_that_ran_out_take_no_room(leases: LiveLeases, clock: Clock) -> None:
    leases.take(snapshot(*(provider(f"old-{number}", clock.now + 15) for number in range(20_001))))
    leases.take(pb.WatchResponse(changed=provider("beyond", clock.now + 60)))
    assert (len(leases.listed), len(leases.unsound)) == (10_000, 10_000)
    assert "beyond" not in {**leases.listed, **leases.unsound}
    clock.now += 16
    leases.take(pb.WatchResponse(changed=provider("beyond", clock.now + 60)))
    assert (set(leases.listed), leases.unsound) == ({"beyond"}, {})


@pytest.mark.parametrize("known", [False, True])
def test_unsound_leases_that_ran_out_take_no_room(leases: LiveLeases, clock: Clock, known: bool) -> None:
    past = [provider(f"old-{number}", clock.now + 15, evidence_digest=b"") for number in range(10_000)]
    leases.take(snapshot(*past, *([provider("new", clock.now + 60)] if known else [])))
    clock.now += 16
    leases.take(pb.WatchResponse(changed=provider("new", clock.now + 60, evidence_digest=b"")))
    assert (leases.listed, leases.unsound) == ({}, {"new": "LEASE_MALFORMED"})


def test_a_name_is_bounded_in_bytes_and_stays_text(leases: LiveLeases, clock: Clock) -> None:
    name = "\u20ac" * 86  # 258 bytes in UTF-8.
    leases.take(snapshot(provider(name, clock.now + 15)))
    assert (leases.listed, leases.unsound) == ({}, {"\u20ac" * 85: "LEASE_MALFORMED"})
    leases.take(pb.WatchResponse(ended=name))
    assert not leases.unsound


async def test_only_what_a_lease_rests_on_is_a_change(leases: LiveLeases, clock: Clock) -> None:
    leases.take(snapshot(provider("one", clock.now + 15)))
    waiting = asyncio.create_task(leases.changed())
    await asyncio.sleep(0)
    leases.take(pb.WatchResponse(changed=provider("one", clock.now + 30, draining=True)))
    leases.take(pb.WatchResponse(heartbeat=pb.Heartbeat()))
    leases.take(snapshot(provider("one", clock.now + 45)))
    await asyncio.sleep(0)
    assert not waiting.done()
    leases.take(pb.WatchResponse(changed=provider("one", clock.now + 30, spki_sha256=b"y" * 32)))
    await waiting
