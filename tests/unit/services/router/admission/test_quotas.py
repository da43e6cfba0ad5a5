"""How many tokens in a day and a month: no more is served, whatever runs at once, and a restart keeps it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.policy.tenant_record import Limits
from services.router.admission.quota_file import Counted, QuotaFile, QuotasUnreadable
from services.router.admission.quotas import UNSAID_COMPLETION, Quotas, TenantQuotaExceeded, estimate
from services.router.errors import InvalidRequest
from services.router.prompt import Constraints, Prompt
from tests.fakes.ledgers import TENANT

NOON = datetime(2026, 12, 30, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600, 86400


class Memory:
    """A file that may fail."""

    def __init__(self) -> None:
        self.counted: dict[str, Counted] = {}
        self.full = False

    def write(self, counted: dict[str, Counted]) -> None:
        if self.full:
            raise OSError(28, "no space")
        self.counted = counted


class Bench:
    def __init__(self, counted: dict[str, Counted] | None = None) -> None:
        self.now = NOON
        self.memory = Memory()
        self.quotas = Quotas(self.memory, counted or {}, lambda: self.now)

    def ask(self, limits: Limits, tokens: int, cost: int | None) -> TenantQuotaExceeded | None:
        try:
            with self.quotas.reserved(replace(TENANT, limits=limits), prompt(tokens), lambda: cost):
                return None
        except TenantQuotaExceeded as refused:
            return refused

    def served(self, limits: Limits, tokens: int, times: int = 100, *, cost: int | None = None) -> int:
        return sum(self.ask(limits, tokens, tokens if cost is None else cost) is None for _ in range(times))


def prompt(tokens: int) -> Prompt:
    """One that may be so many tokens."""
    return Prompt("m", False, Constraints(), b"", most_completion=tokens)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_days_tokens_are_used_up_and_there_again_the_next_day(bench: Bench) -> None:
    limits = Limits(tokens_per_day=100)
    assert bench.served(limits, 30) == 3
    refused = bench.ask(limits, 30, 0)
    assert refused is not None
    assert refused.headers == {"Retry-After": str(12 * HOUR)}
    assert bench.served(limits, 10) == 1
    bench.now += 12 * HOUR
    assert bench.served(limits, 30) == 3


def test_a_months_tokens_outlast_its_days(bench: Bench) -> None:
    limits = Limits(tokens_per_month=100)
    assert bench.served(limits, 60) == 1
    bench.now += DAY
    refused = bench.ask(limits, 60, 0)
    assert refused is not None
    assert refused.retry_seconds == 12 * HOUR
    bench.now += DAY  # New year.
    assert bench.served(limits, 60) == 1


def test_a_request_counts_what_it_cost_and_not_what_it_might_have(bench: Bench) -> None:
    limits = Limits(tokens_per_day=100)
    assert bench.served(limits, 90, cost=1) == 11


def test_what_nobody_knows_counts_as_what_it_might_have_been(bench: Bench) -> None:
    limits = Limits(tokens_per_day=100)
    assert bench.ask(limits, 60, None) is None
    assert bench.ask(limits, 60, None) is not None


def test_what_runs_is_reserved_so_that_no_crowd_goes_beyond(bench: Bench) -> None:
    tenant = replace(TENANT, limits=Limits(tokens_per_day=100))
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(bench.quotas.reserved(tenant, prompt(40), lambda: 1))
        refused = bench.ask(tenant.limits, 40, 1)
        assert refused is not None
        assert refused.retry_seconds == 1
        assert bench.ask(tenant.limits, 40, 1) is not None
    assert bench.ask(tenant.limits, 90, 1) is None


def test_a_refusal_costs_nothing(bench: Bench) -> None:
    tenant = replace(TENANT, limits=Limits(tokens_per_day=100))
    for _ in range(5):
        with pytest.raises(InvalidRequest), bench.quotas.reserved(tenant, prompt(60), lambda: None):
            raise InvalidRequest("no such thing")
    assert bench.ask(tenant.limits, 100, 0) is None


def test_tenants_do_not_share(bench: Bench) -> None:
    limits = Limits(tokens_per_day=100)
    bench.served(limits, 100)
    other = replace(TENANT, tenant_id="cd" * 16, limits=limits)
    with bench.quotas.reserved(other, prompt(100), lambda: 0):
        pass


def test_without_a_quota_nothing_is_counted(bench: Bench) -> None:
    assert bench.served(Limits(), 10**9) == 100
    assert bench.served(Limits(tokens_per_day=100), 100) == 1


def test_a_clock_that_is_put_back_gives_no_day_again(bench: Bench) -> None:
    limits = Limits(tokens_per_day=100)
    bench.now += DAY
    bench.served(limits, 100)
    bench.now -= DAY
    assert bench.served(limits, 100) == 0


@given(costs=st.lists(st.integers(0, 40), max_size=50), pauses=st.lists(st.integers(0, 30 * HOUR), max_size=50))
def test_no_day_ever_has_more_than_its_quota(costs: list[int], pauses: list[int]) -> None:
    bench, limits, used = Bench(), Limits(tokens_per_day=100), dict[str, int]()
    for cost, pause in zip(costs, pauses, strict=False):
        bench.now += pause
        if bench.ask(limits, 40, cost) is None:
            day = f"{datetime.fromtimestamp(bench.now, UTC):%Y-%m-%d}"
            used[day] = used.get(day, 0) + cost
    assert all(tokens <= 100 for tokens in used.values())


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        (Prompt("m", False, Constraints(), b"12345", most_completion=7), 3 + 7),
        (Prompt("m", False, Constraints(), b"12345"), 3 + UNSAID_COMPLETION),
        (Prompt("m", False, Constraints(), b"", most_completion=7, completions=4), 28),
    ],
)
def test_an_estimate_is_of_the_prompt_and_all_that_it_asks_for(asked: Prompt, tokens: int) -> None:
    assert estimate(asked) == tokens


async def test_what_was_counted_is_there_after_a_restart(tmp_path: Path) -> None:
    file, limits = QuotaFile(tmp_path / "quotas.json"), Limits(tokens_per_day=100, tokens_per_month=1000)
    bench = Bench()
    quotas = Quotas(file, file.read(), lambda: bench.now)
    async with asyncio.timeout(20), quotas.keeping():
        with quotas.reserved(replace(TENANT, limits=limits), prompt(70), lambda: None):
            pass
    assert oct((tmp_path / "quotas.json").stat().st_mode)[-3:] == "600"
    again = Bench(file.read())
    assert again.ask(limits, 40, 0) is not None
    assert again.ask(limits, 30, 0) is None


async def test_who_used_nothing_this_month_is_no_longer_kept() -> None:
    bench = Bench({"cd" * 16: Counted("2026-11-02", 5, "2026-11", 500)})
    async with asyncio.timeout(20), bench.quotas.keeping():
        bench.served(Limits(tokens_per_day=100), 10, 1)
    assert bench.memory.counted == {TENANT.tenant_id: Counted("2026-12-30", 10, "2026-12", 10)}


async def test_a_disk_that_fails_stops_nobody(bench: Bench) -> None:
    bench.memory.full = True
    async with asyncio.timeout(20), bench.quotas.keeping():
        bench.served(Limits(tokens_per_day=100), 10, 1)
    assert bench.served(Limits(tokens_per_day=100), 90) == 1


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def of_another_version(path: Path) -> None:
    path.write_bytes(b'{"v":2,"tenants":{}}')


def with_a_negative_count(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b":10", b":-10"))


def of_nobody(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"abab", b"a", 1))


def a_folder(path: Path) -> None:
    os.unlink(path)
    path.mkdir()


@pytest.mark.parametrize("harm", [damaged, of_another_version, with_a_negative_count, of_nobody, a_folder])
def test_a_file_that_is_not_as_it_was_written_is_refused(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = tmp_path / "quotas.json"
    QuotaFile(path).write({TENANT.tenant_id: Counted("2026-12-30", 10, "2026-12", 10)})
    assert QuotaFile(path).read() == {TENANT.tenant_id: Counted("2026-12-30", 10, "2026-12", 10)}
    harm(path)
    with pytest.raises(QuotasUnreadable):
        QuotaFile(path).read()


async def test_a_write_that_is_overtaken_does_not_take_back_what_came_since() -> None:
    """One that runs as the router stops goes on in its thread, beside the last."""
    going_on, begun = threading.Event(), threading.Event()
    written: list[int] = []

    class Slow(Memory):
        def write(self, counted: dict[str, Counted]) -> None:
            if not begun.is_set():
                begun.set()
                assert going_on.wait(20)
            written.append(counted[TENANT.tenant_id].day_tokens)

    async def pause(seconds: float) -> None:
        await asyncio.sleep(0)

    quotas = Quotas(Slow(), {}, lambda: NOON, pause)
    limited, leaving = replace(TENANT, limits=Limits(tokens_per_day=1000)), asyncio.Event()

    async def keep() -> None:
        async with quotas.keeping():
            await leaving.wait()

    def use(tokens: int) -> None:
        with quotas.reserved(limited, prompt(100), lambda: tokens):
            pass

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(keep())
        use(5)
        await asyncio.to_thread(begun.wait)
        use(7)
        leaving.set()
        # Without an order the last write would be done by then.
        await asyncio.wait({keeping}, timeout=0.2)
        going_on.set()
    assert written == [5, 12]
