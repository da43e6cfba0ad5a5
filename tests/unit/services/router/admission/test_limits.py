"""How often and how much at once: pure, by a clock that the test moves."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.policy.tenant_record import Limits
from services.router.admission.limits import (
    LEAST_KEPT,
    Gates,
    TenantConcurrencyExceeded,
    TenantLimited,
    TenantRateExceeded,
)
from tests.fakes.ledgers import TENANT

OTHER = replace(TENANT, tenant_id="cd" * 16)


class Bench:
    def __init__(self) -> None:
        self.now = 1000.0
        self.gates = Gates(lambda: self.now)

    def ask(self, limits: Limits, tenant_id: str = TENANT.tenant_id) -> TenantLimited | None:
        with self.gates.entered(replace(TENANT, tenant_id=tenant_id, limits=limits)) as refused:
            return refused

    def served(self, limits: Limits, times: int) -> int:
        return sum(self.ask(limits) is None for _ in range(times))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_without_limits_nobody_is_refused(bench: Bench) -> None:
    assert bench.served(Limits(), 10_000) == 10_000


def test_a_burst_is_served_and_then_what_the_minute_gives(bench: Bench) -> None:
    limits = Limits(requests_per_minute=60, burst=5)
    assert bench.served(limits, 20) == 5
    refused = bench.ask(limits)
    assert isinstance(refused, TenantRateExceeded)
    assert refused.headers == {"Retry-After": "1"}
    bench.now += 3
    assert bench.served(limits, 20) == 3
    bench.now += 3600
    assert bench.served(limits, 20) == 5


def test_without_a_burst_a_minutes_worth_may_come_at_once(bench: Bench) -> None:
    assert bench.served(Limits(requests_per_minute=7), 20) == 7


def test_the_time_to_wait_is_enough(bench: Bench) -> None:
    limits = Limits(requests_per_minute=7, burst=2)
    bench.served(limits, 5)
    refused = bench.ask(limits)
    assert refused is not None
    bench.now += refused.retry_seconds or 0
    assert bench.ask(limits) is None


def test_refusals_cost_nothing(bench: Bench) -> None:
    limits = Limits(requests_per_minute=60, burst=1)
    bench.served(limits, 1000)
    bench.now += 1
    assert bench.ask(limits) is None


def test_one_tenants_asking_takes_nothing_from_another(bench: Bench) -> None:
    limits = Limits(requests_per_minute=1)
    bench.served(limits, 50)
    assert bench.ask(limits, OTHER.tenant_id) is None


def test_limits_that_change_hold_from_the_next_request(bench: Bench) -> None:
    assert bench.served(Limits(requests_per_minute=600), 700) == 600
    tighter = Limits(requests_per_minute=1)
    assert bench.ask(tighter) is not None
    bench.now += 60
    assert bench.served(tighter, 3) == 1
    assert bench.served(Limits(requests_per_minute=600), 1000) <= 600


@given(
    rate=st.integers(1, 10_000),
    burst=st.integers(1, 100),
    pauses=st.lists(st.floats(0, 10), min_size=1, max_size=60),
)
def test_no_more_than_burst_and_rate_allow_is_ever_served(rate: int, burst: int, pauses: list[float]) -> None:
    bench, limits, served = Bench(), Limits(requests_per_minute=rate, burst=burst), 0
    for pause in pauses:
        bench.now += pause
        served += bench.served(limits, 3)
    assert served <= burst + (bench.now - 1000.0) * rate / 60 + 1e-3 * len(pauses)


def test_as_many_run_at_once_as_the_record_says_whatever_ends_them(bench: Bench) -> None:
    tenant = replace(TENANT, limits=Limits(concurrent=2))
    with ExitStack() as running:
        assert running.enter_context(bench.gates.entered(tenant)) is None
        with suppress(KeyError), bench.gates.entered(tenant) as second:
            assert second is None
            assert isinstance(running.enter_context(bench.gates.entered(tenant)), TenantConcurrencyExceeded)
            raise KeyError
        assert running.enter_context(bench.gates.entered(tenant)) is None
    assert bench.served(tenant.limits, 3) == 3


def test_what_is_kept_of_quiet_tenants_does_not_grow(bench: Bench) -> None:
    limits = Limits(requests_per_minute=60)
    for number in range(3 * LEAST_KEPT):
        bench.now += 1
        bench.ask(limits, f"{number:032x}")
    assert len(bench.gates._gates) <= LEAST_KEPT + 1


def test_who_has_used_its_allowance_is_not_forgotten_for_others(bench: Bench) -> None:
    limits = Limits(requests_per_minute=1)
    bench.ask(limits)
    for number in range(3 * LEAST_KEPT):
        bench.ask(limits, f"{number:032x}")
    assert bench.ask(limits) is not None


def test_of_each_tenants_refusals_some_have_receipts(bench: Bench) -> None:
    assert sum(bench.gates.spares_receipt(TENANT.tenant_id) for _ in range(100)) == 10
    assert bench.gates.spares_receipt(OTHER.tenant_id)
    bench.now += 2
    assert sum(bench.gates.spares_receipt(TENANT.tenant_id) for _ in range(100)) == 2
