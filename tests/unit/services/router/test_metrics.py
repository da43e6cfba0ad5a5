from __future__ import annotations

from services.router.metrics import Count, Durations, Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(metrics: Metrics, of: str) -> list[str]:
    return [line for line in metrics.text().splitlines() if line.startswith(of)]


def test_a_count_has_a_line_for_each_value_that_came() -> None:
    count = Count("a_total", "All of it.", "kind")
    count.add("x")
    count.add("y", 2)
    count.add("x")
    assert list(count.lines()) == [
        "# HELP a_total All of it.",
        "# TYPE a_total counter",
        'a_total{kind="x"} 2',
        'a_total{kind="y"} 2',
    ]


def test_a_count_that_may_shrink_is_a_gauge_by_value() -> None:
    count = Count("a_now", "So many.", "kind", shrinks=True)
    count.add("x", 2)
    count.add("x", -1)
    assert list(count.lines())[1:] == ["# TYPE a_now gauge", 'a_now{kind="x"} 1']


def test_who_waits_and_which_nodes_are_avoided_is_told() -> None:
    metrics = Metrics()
    metrics.routing.waiting.add()
    metrics.routing.turned_away.add("full")
    metrics.routing.breakers.add("errors")
    metrics.routing.waited_seconds.observe(0.5)
    for line in (
        "teemesh_router_waiting 1",
        'teemesh_router_turned_away_total{reason="full"} 1',
        'teemesh_router_breakers_open{cause="errors"} 1',
        "teemesh_router_waited_seconds_count 1",
    ):
        assert line in metrics.text().splitlines()


def test_the_classes_of_durations_add_up() -> None:
    durations = Durations("a_seconds", "How long.")
    for seconds in (0.001, 0.005, 0.2, 1000.0):
        durations.observe(seconds)
    text = list(durations.lines())
    assert text[1] == "# TYPE a_seconds histogram"
    assert text[2] == 'a_seconds_bucket{le="0.005"} 2'
    assert 'a_seconds_bucket{le="0.25"} 3' in text
    assert text[-3:] == ['a_seconds_bucket{le="+Inf"} 4', "a_seconds_sum 1000.206000", "a_seconds_count 4"]


def test_an_exchange_is_running_until_it_ends_however_it_does() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    try:
        with metrics.exchange("/v1/completions") as head:
            assert lines(metrics, "teemesh_router_exchanges_running ") == ["teemesh_router_exchanges_running 1"]
            clock.now += 0.02
            head(200)
            clock.now += 3.0
            raise ConnectionResetError
    except ConnectionResetError:
        pass
    assert lines(metrics, "teemesh_router_exchanges_running ") == ["teemesh_router_exchanges_running 0"]
    assert lines(metrics, "teemesh_router_exchanges_total") == [
        'teemesh_router_exchanges_total{endpoint="/v1/completions"} 1'
    ]
    assert lines(metrics, "teemesh_router_head_seconds_sum") == ["teemesh_router_head_seconds_sum 0.020000"]
    assert lines(metrics, "teemesh_router_exchange_seconds_sum") == ["teemesh_router_exchange_seconds_sum 3.020000"]


def test_a_status_that_a_node_makes_up_gets_no_line_of_its_own() -> None:
    metrics = Metrics()
    for status in (200, 600, 70_000):
        with metrics.exchange("/v1/completions") as head:
            head(status)
    assert lines(metrics, "teemesh_router_responses_total") == [
        'teemesh_router_responses_total{status="200"} 1',
        'teemesh_router_responses_total{status="other"} 2',
    ]
