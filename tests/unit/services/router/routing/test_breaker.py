"""Which nodes are avoided: those that fail or begin slowly, for as long as they do, and for nothing a client can do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from libs.aci.receipt_events import UpstreamVerified
from services.router.errors import UpstreamFailed
from services.router.metrics import RoutingMetrics
from services.router.routing.breaker import Breakers
from services.router.routing.hop import Begun, Ended, NodeUnavailable, Reached
from services.router.routing.settings import RoutingSettings

SETTINGS = RoutingSettings(breaker_failures=3, breaker_seconds=10.0, slow_seconds=1.0, slow_factor=4.0)
BROKEN = UpstreamFailed("the node broke off")
REACHED = Reached("sha256:00", UpstreamVerified(True, "m", "00" * 32))


class Nodes:
    """Breakers, a clock, and requests at the nodes that they watch."""

    def __init__(self, *names: str, settings: RoutingSettings = SETTINGS) -> None:
        self.now = 1000.0
        self.metrics = RoutingMetrics()
        self.breakers = Breakers(settings, self.metrics.breakers, lambda: self.now)
        for name in names:
            self.breakers.know(name)

    def ask(
        self,
        name: str,
        *,
        status: int = 200,
        first_byte: float = 0.1,
        fails: UpstreamFailed | None = None,
        leaves: bool = False,
        streams: bool = True,
        model: str = "m",
        tenant: str = "t",
    ) -> None:
        """One request, from its choice to its end. One that `fails` does before its first byte."""
        attempting = self.breakers.attempt(name, model, tenant, streams=streams)
        with suppress(UpstreamFailed, GeneratorExit), attempting as attempt:
            self.breakers.note(attempt, REACHED)
            self.now += first_byte
            if fails is not None:
                raise fails
            if leaves:
                raise GeneratorExit
            for step in (Begun(status, "application/json"), b"a", b"b", Ended(None)):
                self.breakers.note(attempt, step)

    def open(self, name: str) -> None:
        for _ in range(3):
            self.ask(name, fails=BROKEN)
        assert not self.admits(name)

    def admits(self, name: str, tenant: str = "t") -> bool:
        return self.breakers.admits(name, tenant)

    @property
    def counted(self) -> dict[str, int]:
        return {cause: number for cause, number in self.metrics.breakers.numbers.items() if number}


def test_failures_in_a_row_open_it_and_no_fewer() -> None:
    nodes = Nodes("a", "b")
    for fails in (BROKEN, BROKEN, None, NodeUnavailable("refused"), BROKEN):
        nodes.ask("a", fails=fails)
    assert nodes.admits("a")
    nodes.ask("a", fails=BROKEN)
    assert (nodes.admits("a"), nodes.admits("b")) == (False, True)
    assert nodes.counted == {"errors": 1}


def test_an_engine_that_fails_with_an_answer_has_failed_whoever_asks() -> None:
    nodes = Nodes("a")
    for tenant in ("one", "another", "one"):
        assert nodes.admits("a", tenant)
        nodes.ask("a", status=502, tenant=tenant)
    assert [nodes.admits("a", tenant) for tenant in ("one", "another", "a third")] == [False] * 3
    assert nodes.counted == {"errors": 1}


def fail_for_one(nodes: Nodes, times: int = 3) -> None:
    for _ in range(times):
        nodes.ask("a", status=502, tenant="greedy")


def test_answers_that_fail_for_one_tenant_have_that_one_alone_avoid_the_node() -> None:
    nodes = Nodes("a")
    fail_for_one(nodes, 2)
    assert nodes.admits("a", "greedy")
    fail_for_one(nodes, 100)
    assert (nodes.admits("a", "greedy"), nodes.admits("a", "other")) == (False, True)
    assert nodes.counted == {"one_tenant": 1}
    nodes.now += 10.0
    with nodes.breakers.attempt("a", "m", "greedy", streams=True):
        assert (nodes.admits("a", "greedy"), nodes.admits("a", "other")) == (False, True), "it is tried by one request"
    fail_for_one(nodes, 1)
    assert (nodes.admits("a", "greedy"), nodes.admits("a", "other")) == (False, True)
    nodes.ask("a", tenant="other")
    assert not nodes.admits("a", "greedy"), "another's success is none of its own"
    nodes.now += 10.0
    nodes.ask("a", tenant="greedy")
    assert nodes.admits("a", "greedy")
    assert nodes.counted == {}


def test_its_trial_that_fails_has_it_wait_again_whoever_was_served_meanwhile() -> None:
    nodes = Nodes("a")
    fail_for_one(nodes)
    nodes.ask("a", tenant="other")
    nodes.now += 10.0
    assert nodes.admits("a", "greedy")
    fail_for_one(nodes, 1)
    assert not nodes.admits("a", "greedy")
    assert nodes.counted == {"one_tenant": 1}


def test_that_one_tenant_is_set_apart_again_and_again_hides_no_failure_of_the_node() -> None:
    nodes = Nodes("a")
    for _ in range(3):
        with suppress(UpstreamFailed), nodes.breakers.attempt("a", "m", "other", streams=True) as long:
            nodes.breakers.note(long, REACHED)
            nodes.ask("a", tenant="greedy")
            fail_for_one(nodes)
            raise BROKEN
    assert nodes.counted == {"errors": 1}


def test_nor_an_answer_that_fails_for_another() -> None:
    nodes = Nodes("a")
    with nodes.breakers.attempt("a", "m", "other", streams=True) as long:
        nodes.breakers.note(long, REACHED)
        fail_for_one(nodes)
        for step in (Begun(502, ""), b"x", Ended(None)):
            nodes.breakers.note(long, step)
    assert [nodes.admits("a", tenant) for tenant in ("greedy", "other", "a third")] == [False] * 3


def test_nor_how_late_anothers_stream_begins() -> None:
    nodes = Nodes("a", "b")
    nodes.ask("b", tenant="other")
    for _ in range(3):
        with nodes.breakers.attempt("a", "m", "other", streams=True) as late:
            nodes.breakers.note(late, REACHED)
            nodes.ask("a", tenant="greedy", streams=False)
            fail_for_one(nodes)
            nodes.now += 30.0
            for step in (Begun(200, ""), b"x"):
                nodes.breakers.note(late, step)
    assert nodes.counted == {"latency": 1}


def test_a_second_tenant_for_whom_answers_fail_has_everybody_avoid_it() -> None:
    nodes = Nodes("a")
    fail_for_one(nodes, 100)
    nodes.ask("a", status=502, tenant="other")
    assert [nodes.admits("a", tenant) for tenant in ("greedy", "other", "a third")] == [False] * 3
    assert nodes.counted == {"errors": 1}


def test_nor_is_it_enough_for_one_that_another_fails_once_of_five() -> None:
    nodes = Nodes("a", settings=replace(SETTINGS, breaker_failures=5))
    fail_for_one(nodes, 100)
    nodes.ask("a", status=502, tenant="other")
    assert nodes.admits("a", "other")
    nodes.ask("a", status=502, tenant="other")
    assert not nodes.admits("a", "other")


def test_one_tenants_answers_that_fail_do_not_keep_others_from_trying_a_node_that_was_avoided() -> None:
    nodes = Nodes("a")
    nodes.open("a")
    nodes.now += 10.0
    fail_for_one(nodes, 100)
    assert (nodes.admits("a", "greedy"), nodes.admits("a", "other")) == (False, True)
    assert nodes.counted == {"errors": 1, "one_tenant": 1}
    nodes.ask("a", status=502, tenant="other")
    assert [nodes.admits("a", tenant) for tenant in ("greedy", "other", "a third")] == [False] * 3
    assert nodes.counted == {"errors": 1}
    nodes.now += 10.0
    nodes.ask("a", tenant="other")
    assert nodes.admits("a", "greedy")
    assert nodes.counted == {}


def test_a_request_from_before_a_tenant_avoided_it_says_nothing_of_the_node_now() -> None:
    nodes = Nodes("a")
    with nodes.breakers.attempt("a", "m", "greedy", streams=True) as long:
        for step in (REACHED, Begun(200, ""), b"x"):
            nodes.breakers.note(long, step)
        fail_for_one(nodes)
        nodes.breakers.note(long, Ended(None))
    assert not nodes.admits("a", "greedy")


def test_a_node_that_only_one_tenant_avoids_and_that_is_not_listed_any_more_leaves_nothing() -> None:
    nodes = Nodes("a")
    fail_for_one(nodes)
    nodes.breakers.forget("a")
    assert nodes.counted == {}
    nodes.breakers.know("a")
    assert nodes.admits("a", "greedy")


@pytest.mark.parametrize(
    "does",
    [
        {"status": 400},
        {"status": 429, "first_byte": 50.0},
        {"leaves": True},
        {"fails": NodeUnavailable("the node refused: BODY_TOO_LARGE", excused=True)},
        {"fails": NodeUnavailable("no time", late=True), "first_byte": 1.0},
        {"streams": False, "first_byte": 50.0},
    ],
)
def test_nothing_that_a_client_can_do_opens_it(does: dict[str, Any]) -> None:
    nodes = Nodes("a", "b")
    for _ in range(20):
        nodes.ask("b")
        nodes.ask("a", **does)
    assert nodes.admits("a")


def test_nor_does_it_hide_that_the_node_fails() -> None:
    nodes = Nodes("a")
    for _ in range(3):
        nodes.ask("a", fails=BROKEN)
        nodes.ask("a", status=400)
        nodes.ask("a", leaves=True)
    assert not nodes.admits("a")


def test_a_client_that_waited_long_for_nothing_had_a_node_that_failed() -> None:
    nodes = Nodes("a")
    for _ in range(3):
        nodes.ask(
            "a", streams=False, fails=NodeUnavailable("no time", late=True), first_byte=SETTINGS.first_byte_seconds
        )
    assert not nodes.admits("a")


LONG = SETTINGS.first_byte_seconds + 1.0
OVERRUN = NodeUnavailable("no time", late=True)
SILENT = NodeUnavailable("the node was silent for 60 s")


@contextmanager
def meanwhile(nodes: Nodes, *overruns: NodeUnavailable) -> Iterator[None]:
    """One tenant's requests, which the node is handed and does not answer for as long as this takes."""
    with ExitStack() as running:
        for overrun in overruns:
            running.enter_context(suppress(UpstreamFailed))
            attempt = running.enter_context(nodes.breakers.attempt("a", "m", "greedy", streams=overrun is SILENT))
            nodes.breakers.note(attempt, REACHED)

            def fails(*_: object, error: NodeUnavailable = overrun) -> bool:
                raise error

            running.push(fails)
        yield
        nodes.now += LONG


@pytest.mark.parametrize("overrun", [OVERRUN, SILENT], ids=["its own time", "a stream that does not begin"])
def test_one_tenants_requests_that_take_too_long_do_not_open_what_answers_another(overrun: NodeUnavailable) -> None:
    nodes = Nodes("a")
    for _ in range(5):
        with meanwhile(nodes, *[overrun] * 5):
            nodes.ask("a", tenant="other")
        assert nodes.admits("a")


def test_nor_while_anothers_stream_goes_on() -> None:
    nodes = Nodes("a")
    with nodes.breakers.attempt("a", "m", "other", streams=True) as stream:
        for step in (REACHED, Begun(200, ""), b"x"):
            nodes.breakers.note(stream, step)
        for _ in range(5):
            nodes.now += LONG
            with meanwhile(nodes, *[OVERRUN] * 5):
                nodes.breakers.note(stream, b"x")
    assert nodes.admits("a")


@pytest.mark.parametrize("overrun", [OVERRUN, SILENT], ids=["its own time", "a stream that does not begin"])
def test_a_node_that_answers_nobody_is_avoided_whoever_asks(overrun: NodeUnavailable) -> None:
    nodes = Nodes("a")
    nodes.ask("a", tenant="other")
    nodes.now += 1
    with meanwhile(nodes, *[overrun] * 2):
        pass
    assert nodes.admits("a")
    nodes.ask("a", tenant="other", streams=overrun is SILENT, fails=overrun, first_byte=LONG)
    assert not nodes.admits("a")


def test_what_a_tenant_itself_is_answered_excuses_nothing() -> None:
    nodes = Nodes("a")
    with meanwhile(nodes, *[OVERRUN] * 3):
        nodes.ask("a", tenant="greedy")
    assert not nodes.admits("a")


def test_a_node_that_breaks_off_is_avoided_whoever_else_it_answers() -> None:
    nodes = Nodes("a")
    for _ in range(3):
        nodes.ask("a", tenant="other", status=400)
        nodes.ask("a", tenant="greedy", fails=BROKEN)
    assert not nodes.admits("a")


def test_one_tenants_long_prompts_are_not_slow_where_anothers_streams_begin_in_time() -> None:
    nodes = Nodes("a", "b")
    nodes.ask("b")
    for _ in range(5):
        with ExitStack() as running:
            attempts = [
                running.enter_context(nodes.breakers.attempt("a", "m", "greedy", streams=True)) for _ in range(5)
            ]
            for attempt in attempts:
                nodes.breakers.note(attempt, REACHED)
            nodes.ask("a", tenant="other")
            nodes.now += 30.0
            for attempt in attempts:
                for step in (Begun(200, ""), b"x"):
                    nodes.breakers.note(attempt, step)
        assert nodes.admits("a")


def test_streams_of_several_tenants_that_begin_late_open_it() -> None:
    nodes = Nodes("a", "b")
    for tenant in ("one", "two", "three"):
        nodes.ask("b", tenant=tenant)
        nodes.ask("a", tenant=tenant, first_byte=30.0)
    assert nodes.counted == {"latency": 1}


def test_after_its_time_one_request_tries_it_and_closes_it() -> None:
    nodes = Nodes("a")
    nodes.open("a")
    nodes.now += 9.9
    assert not nodes.admits("a")
    nodes.now += 0.1
    assert nodes.admits("a")
    with nodes.breakers.attempt("a", "m", "t", streams=True) as trial:
        assert not nodes.admits("a")
        for step in (REACHED, Begun(200, ""), b"x", Ended(None)):
            nodes.breakers.note(trial, step)
    assert nodes.admits("a")
    assert nodes.counted == {}
    nodes.ask("a", fails=BROKEN)
    assert nodes.admits("a"), "it counts from the beginning again"


def test_a_trial_that_fails_opens_it_again_at_once() -> None:
    nodes = Nodes("a")
    nodes.open("a")
    nodes.now += 10.0
    nodes.ask("a", fails=BROKEN)
    assert not nodes.admits("a")
    assert nodes.counted == {"errors": 1}
    nodes.now += 10.0
    assert nodes.admits("a")


@pytest.mark.parametrize("status", [200, 400])
def test_a_client_that_leaves_its_trial_or_asks_wrongly_keeps_nobody_from_the_next(status: int) -> None:
    nodes = Nodes("a")
    nodes.open("a")
    nodes.now += 10.0
    nodes.ask("a", leaves=status == 200, status=status)
    assert nodes.admits("a")
    assert nodes.counted == {"errors": 1}


def test_a_request_from_before_it_opened_says_nothing_of_the_node_now() -> None:
    nodes = Nodes("a")
    with nodes.breakers.attempt("a", "m", "t", streams=True) as long:
        for step in (REACHED, Begun(200, ""), b"x"):
            nodes.breakers.note(long, step)
        nodes.open("a")
        nodes.breakers.note(long, Ended(None))
    assert nodes.counted == {"errors": 1}, "it ends well, and the breaker stays open"


def test_nor_does_one_that_fails_after_it_closed_again() -> None:
    nodes = Nodes("a")
    with ExitStack() as long:
        for _ in range(5):
            long.enter_context(suppress(UpstreamFailed))
            long.enter_context(nodes.breakers.attempt("a", "m", "t", streams=True))
            long.push(_breaking_off)
        nodes.open("a")
        nodes.now += 10.0
        nodes.ask("a")
    assert nodes.admits("a")
    assert nodes.counted == {}


def _breaking_off(*_: object) -> bool:
    raise BROKEN


def test_streams_that_begin_far_later_than_the_others_open_it() -> None:
    nodes = Nodes("a", "b", "c")
    for _ in range(3):
        assert nodes.admits("a")
        nodes.ask("b", first_byte=0.5)
        nodes.ask("c", first_byte=0.5)
        nodes.ask("a", first_byte=2.1)
    assert not nodes.admits("a")
    assert nodes.counted == {"latency": 1}
    nodes.now += 10.0
    nodes.ask("a", first_byte=2.1)
    assert not nodes.admits("a"), "its trial was slow as well"
    nodes.now += 10.0
    nodes.ask("a", first_byte=0.5)
    assert nodes.admits("a")
    assert nodes.counted == {}


def test_one_slow_beginning_is_a_long_prompt_and_nothing_more() -> None:
    nodes = Nodes("a", "b")
    for _ in range(10):
        nodes.ask("b", first_byte=0.1)
        for first_byte in (30.0, 30.0, 0.1):
            nodes.ask("a", first_byte=first_byte)
            assert nodes.counted == {}


@pytest.mark.parametrize(("others", "own"), [(0.01, 0.9), (10.0, 30.0), (None, 30.0)])
def test_nobody_is_slow_who_is_quick_enough_or_as_slow_as_the_others(others: float | None, own: float) -> None:
    nodes = Nodes("a", "b")
    for _ in range(10):
        if others is not None:
            nodes.ask("b", first_byte=others)
        nodes.ask("b", first_byte=0.01, model="a smaller model")
        nodes.ask("a", first_byte=own)
    assert nodes.admits("a")


def test_a_node_that_is_not_listed_any_more_leaves_nothing() -> None:
    nodes = Nodes("a")
    nodes.open("a")
    with suppress(UpstreamFailed), nodes.breakers.attempt("a", "m", "t", streams=True):
        nodes.breakers.forget("a")
        assert nodes.counted == {}
        raise BROKEN
    for _ in range(5):
        nodes.ask("a", fails=BROKEN)
    assert nodes.admits("a")
    assert nodes.counted == {}
    assert not nodes.breakers._breakers
    nodes.breakers.know("a")
    assert nodes.admits("a")
