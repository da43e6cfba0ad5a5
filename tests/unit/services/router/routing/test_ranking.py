"""The order in which nodes would be chosen: by load, among equals by chance, and never one that is gone."""

from __future__ import annotations

import random
from collections import Counter

from libs.aci.endpoints import CHAT, MESSAGES
from services.router.routing.ranking import Ranking

M, N = [("m", CHAT)], [("n", CHAT)]


def ranking(seed: int = 1) -> Ranking:
    return Ranking(random.Random(seed))  # noqa: S311 - a seed makes the test repeat


def test_the_least_loaded_for_its_capacity_comes_first() -> None:
    ranked = ranking()
    ranked.put("small", M, busy=1, capacity=2)
    ranked.put("large", M, busy=3, capacity=8)
    ranked.put("full", M, busy=9, capacity=8)
    assert list(ranked.of("m", CHAT)) == ["large", "small", "full"]


def test_among_the_least_loaded_chance_decides_each_time() -> None:
    ranked, first = ranking(), Counter[str]()
    names = ["a", "b", "c"]
    for name in names:
        ranked.put(name, M, busy=2, capacity=4)
    ranked.put("busier", M, busy=3, capacity=4)
    for _ in range(600):
        order = list(ranked.of("m", CHAT))
        first[order[0]] += 1
        assert (sorted(order[:3]), order[3]) == (names, "busier")
    assert min(first[name] for name in names) > 150


def test_so_it_does_among_any_that_are_equally_loaded() -> None:
    ranked, second = ranking(), Counter[str]()
    ranked.put("idle", M, busy=0, capacity=4)
    for name in ("a", "b", "c"):
        ranked.put(name, M, busy=2, capacity=4)
    for _ in range(300):
        second[list(ranked.of("m", CHAT))[1]] += 1
    assert min(second[name] for name in ("a", "b", "c")) > 60


def test_a_node_is_ranked_once_for_each_model_and_leaves_no_place_behind() -> None:
    ranked = ranking()
    for busy in range(5):
        ranked.put("a", [*M, *N], busy=busy, capacity=4)
    ranked.put("a", N, busy=0, capacity=4)
    assert (list(ranked.of("m", CHAT)), list(ranked.of("n", CHAT))) == ([], ["a"])
    ranked.put("a", N, busy=0, capacity=0)
    assert list(ranked.of("n", CHAT)) == []
    ranked.remove("a")
    ranked.remove("never there")
    assert not ranked._ranked


def test_it_agrees_with_sorting_after_any_changes() -> None:
    chance, ranked = random.Random(7), ranking()  # noqa: S311 - a seed makes the test repeat
    loads: dict[str, float] = {}
    for _ in range(3000):
        name = f"n{chance.randrange(40)}"
        if chance.random() < 0.2:
            ranked.remove(name)
            loads.pop(name, None)
        else:
            busy, capacity = chance.randrange(9), chance.randrange(1, 9)
            ranked.put(name, M, busy, capacity)
            loads[name] = busy / capacity
        found = list(ranked.of("m", CHAT))
        assert sorted(found) == sorted(loads)
        assert [loads[each] for each in found] == sorted(loads.values())


def test_a_node_has_a_place_where_it_is_asked_and_nowhere_else() -> None:
    ranked = ranking()
    ranked.put("first", M, busy=0, capacity=4)
    ranked.put("more", [*M, ("m", MESSAGES)], busy=3, capacity=4)
    assert list(ranked.of("m", MESSAGES)) == ["more"]
    assert list(ranked.of("m", CHAT)) == ["first", "more"]
    ranked.remove("more")
    assert list(ranked.of("m", MESSAGES)) == []
