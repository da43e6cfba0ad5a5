"""However often somebody is refused, the log gets a few records a minute, and no refusal is uncounted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from libs.events.kinds import Kind
from services.kms.decisions import Decisions
from services.kms.refusals import MAX_CALLERS, MAX_OF_A_CALLER, OTHERS, Refusals, keeping
from tests.fakes.joined_mesh import Clock
from tests.fakes.running_kms import DecisionLog

CALLER = "spiffe://mesh.test/router/1"


def refused(name: str = "models/a", caller: str = CALLER, reason: str = "KEY_NOT_ALLOWED") -> dict[str, Any]:
    return {"decision": "refused", "name": name, "epoch": 1, "spiffe_id": caller, "reason": reason}


def passed_over(log: DecisionLog) -> list[Mapping[str, Any]]:
    return [body for _, body in log.outbox if "passed_over" in body]


def told(log: DecisionLog) -> int:
    """Of how many refusals the log tells, one by one or as numbers."""
    return sum(body.get("passed_over", {"count": 1})["count"] for _, body in log.outbox)


@pytest.fixture
def log() -> DecisionLog:
    return DecisionLog()


@pytest.fixture
def refusals(log: DecisionLog) -> Refusals:
    return Decisions(log).refusals


async def test_who_asks_in_a_loop_gets_one_record_and_then_one_number(log: DecisionLog) -> None:
    clock = Clock(1000.0)

    async def record(body: Mapping[str, Any]) -> None:
        log.outbox.append((Kind.KEY_DECISION, body))

    refusals = Refusals(record, clock)
    for _ in range(1000):
        await refusals.record(refused())
    assert log.outbox == [(Kind.KEY_DECISION, refused())]
    clock.now += 60
    await refusals.end_minute()
    assert [body for _, body in log.outbox[1:]] == [
        {
            "decision": "refused",
            "name": "models/a",
            "spiffe_id": CALLER,
            "reason": "KEY_NOT_ALLOWED",
            "passed_over": {"v": 1, "count": 999, "since_ms": 1_000_000},
        }
    ]


async def test_what_is_refused_once_a_minute_is_recorded_each_time_and_leaves_no_number(
    log: DecisionLog, refusals: Refusals
) -> None:
    for _ in range(3):
        await refusals.record(refused())
        await refusals.end_minute()
    assert [body for _, body in log.outbox] == [refused()] * 3


async def test_each_caller_name_and_reason_is_recorded_for_itself(log: DecisionLog, refusals: Refusals) -> None:
    different = [refused(), refused(name="models/b"), refused(caller="spiffe://mesh.test/node/1"), refused(reason="X")]
    for one in different * 2:
        await refusals.record(one)
    assert [body for _, body in log.outbox] == different
    await refusals.end_minute()
    assert [body["passed_over"]["count"] for body in passed_over(log)] == [1] * len(different)


async def test_a_caller_that_thinks_of_new_names_gets_no_more_records(log: DecisionLog, refusals: Refusals) -> None:
    for number in range(1000):
        await refusals.record(refused(name=f"models/{number}"))
    await refusals.record(refused(caller="spiffe://mesh.test/node/1"))
    assert len(log.outbox) == MAX_OF_A_CALLER + 2
    assert log.outbox[-1][1]["spiffe_id"] == "spiffe://mesh.test/node/1"
    await refusals.end_minute()
    (counted,) = passed_over(log)
    assert (counted["spiffe_id"], counted["name"], counted["reason"]) == (CALLER, OTHERS, OTHERS)
    assert told(log) == 1001


async def test_callers_without_number_get_no_records_without_number(log: DecisionLog, refusals: Refusals) -> None:
    for number in range(MAX_CALLERS + 1000):
        await refusals.record(refused(name=f"models/{number}", caller=f"spiffe://mesh.test/node/{number}"))
    assert len(log.outbox) == MAX_CALLERS + MAX_OF_A_CALLER + 1
    await refusals.end_minute()
    assert [body["spiffe_id"] for body in passed_over(log)] == [OTHERS]
    assert told(log) == MAX_CALLERS + 1000


async def test_a_full_outbox_delays_refusals_and_loses_none(log: DecisionLog, refusals: Refusals) -> None:
    log.crowded = True
    for _ in range(5):
        await refusals.record(refused())
    await refusals.end_minute()
    await refusals.record(refused())
    assert log.outbox == []
    log.crowded = False
    await refusals.end_minute()
    assert [body["passed_over"]["count"] for body in passed_over(log)] == [6]
    await refusals.end_minute()
    assert told(log) == 6


async def test_an_orderly_end_leaves_nothing_uncounted(log: DecisionLog, refusals: Refusals) -> None:
    names = Counter({"models/a": 3, "models/b": 7})
    async with keeping(refusals):
        for name in names.elements():
            await refusals.record(refused(name=name))
    assert told(log) == names.total()
    assert {body["name"]: body["passed_over"]["count"] for body in passed_over(log)} == {"models/a": 2, "models/b": 6}
