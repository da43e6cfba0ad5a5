"""Refused admissions on record: each at once, its repetitions as a number, whatever a node does."""

from __future__ import annotations

from typing import cast

import pytest

from libs.errors import Code, MeshError
from libs.events.publish import Publisher
from services.registry.admissions import Admissions
from services.registry.refusals import MAX_PAIRS, Refusals
from tests.fakes.registries import Log

NODE = "spiffe://mesh.test/node/1"


class Refused(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "MEASUREMENT_REVOKED"


class OtherwiseRefused(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "ENDPOINT_MALFORMED"


def refusal(code: Code, reason: str = "SOME_REASON") -> MeshError:
    undecided: type[MeshError] = type("Undecided", (MeshError,), {"code": code, "reason": reason})
    return undecided("not now")


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def refusals(log: Log) -> Refusals:
    return Refusals(Admissions(cast(Publisher, log), lambda: 7), clock=lambda: 1_000.0)


async def test_a_refusal_is_on_record_at_once(log: Log, refusals: Refusals) -> None:
    await refusals.note(NODE, Refused("no"))
    assert [body for _, body in log.entries] == [
        {"decision": "refused", "spiffe_id": NODE, "reason": "MEASUREMENT_REVOKED", "policy_version": 7}
    ]


async def test_a_thousand_repetitions_are_one_record_and_a_number(log: Log, refusals: Refusals) -> None:
    for _ in range(1000):
        await refusals.note(NODE, Refused("no"))
    await refusals.note(NODE, OtherwiseRefused("no"))
    assert len(log.entries) == 2
    await refusals.end_minute()
    _, counted = log.entries[-1]
    assert len(log.entries) == 3
    assert counted["passed_over"] == {"v": 1, "count": 999, "since_ms": 1_000_000}
    await refusals.end_minute()
    assert len(log.entries) == 3
    await refusals.note(NODE, Refused("no"))
    assert len(log.entries) == 4


async def test_a_crowd_of_names_is_bounded(log: Log, refusals: Refusals) -> None:
    for number in range(2 * MAX_PAIRS):
        await refusals.note(f"{NODE}{number}", Refused("no"))
    assert len(log.entries) == MAX_PAIRS + 1
    await refusals.end_minute()
    _, counted = log.entries[-1]
    assert (counted["spiffe_id"], counted["passed_over"]["count"]) == ("*", MAX_PAIRS - 1)


@pytest.mark.parametrize(
    "undecided",
    [
        (Code.UNAVAILABLE, "STORE_UNAVAILABLE"),
        (Code.ABORTED, "STORE_CONFLICT"),
        (Code.RESOURCE_EXHAUSTED, "OUTBOX_FULL"),
        (Code.NOT_FOUND, "LEASE_UNKNOWN"),
        (Code.UNAUTHENTICATED, "EVIDENCE_REQUIRED"),
    ],
)
async def test_what_decides_nothing_is_not_on_record(log: Log, refusals: Refusals, undecided: tuple[Code, str]) -> None:
    await refusals.note(NODE, refusal(*undecided))
    await refusals.end_minute()
    assert log.entries == []


async def test_a_full_outbox_delays_the_record_and_loses_no_number(log: Log, refusals: Refusals) -> None:
    log.full = True
    for _ in range(3):
        await refusals.note(NODE, Refused("no"))
    await refusals.end_minute()
    await refusals.note(NODE, Refused("no"))
    log.full = False
    await refusals.end_minute()
    (only,) = [body for _, body in log.entries]
    assert only["passed_over"]["count"] == 4


async def test_what_is_left_is_recorded_at_an_end_in_order(log: Log, refusals: Refusals) -> None:
    async with refusals.kept():
        for _ in range(3):
            await refusals.note(NODE, Refused("no"))
    assert [body.get("passed_over", {}).get("count") for _, body in log.entries] == [None, 2]
