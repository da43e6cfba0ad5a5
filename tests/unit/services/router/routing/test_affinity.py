"""Where what begins alike goes: to one node, each tenant's to its own, and few of them elsewhere when nodes change."""

from __future__ import annotations

from collections import Counter

from services.router.routing.affinity import Affinity

KEY = b"\x01" * 32
NODES = [f"node-{number}" for number in range(10)]
BEGINNINGS = [f"conversation {number}".encode() for number in range(1000)]


def ring(*names: str, key: bytes = KEY) -> Affinity:
    affinity = Affinity(key)
    for name in names:
        affinity.put(name, ["m"])
    return affinity


def first(affinity: Affinity, tenant: str, beginning: bytes) -> str:
    return next(affinity.of("m", tenant, beginning))


def test_what_begins_alike_goes_to_one_node_whatever_the_order_in_which_nodes_came() -> None:
    here, there = ring(*NODES), ring(*reversed(NODES))
    for beginning in BEGINNINGS[:100]:
        assert list(here.of("m", "t", beginning)) == list(there.of("m", "t", beginning))


def test_every_node_is_named_once_and_none_of_another_model() -> None:
    affinity = ring(*NODES)
    affinity.put("other", ["n"])
    assert sorted(affinity.of("m", "t", b"hello")) == NODES
    assert list(affinity.of("n", "t", b"hello")) == ["other"]
    assert list(affinity.of("unheard-of", "t", b"hello")) == []


def test_beginnings_are_spread_over_the_nodes() -> None:
    affinity = ring(*NODES)
    counts = Counter(first(affinity, "t", beginning) for beginning in BEGINNINGS)
    assert set(counts) == set(NODES)
    assert max(counts.values()) < 3 * len(BEGINNINGS) / len(NODES)


def test_a_node_that_goes_moves_only_what_it_had() -> None:
    affinity = ring(*NODES)
    before = {beginning: first(affinity, "t", beginning) for beginning in BEGINNINGS}
    affinity.remove("node-3")
    for beginning, name in before.items():
        assert first(affinity, "t", beginning) == name or name == "node-3"
    affinity.put("node-3", ["m"])
    assert {beginning: first(affinity, "t", beginning) for beginning in BEGINNINGS} == before


def test_two_tenants_that_ask_the_same_learn_nothing_of_each_others_node() -> None:
    affinity = ring(*NODES)
    same = sum(first(affinity, "one", beginning) == first(affinity, "two", beginning) for beginning in BEGINNINGS)
    assert same < 3 * len(BEGINNINGS) / len(NODES)


def test_nobody_without_the_key_can_tell_where_a_prompt_goes() -> None:
    affinity, guessed = ring(*NODES), ring(*NODES, key=b"\x02" * 32)
    same = sum(first(affinity, "t", beginning) == first(guessed, "t", beginning) for beginning in BEGINNINGS)
    assert same < 3 * len(BEGINNINGS) / len(NODES)
    assert Affinity()._key != Affinity()._key


def test_parts_of_a_place_are_not_mistaken_for_each_other() -> None:
    affinity = ring(*NODES)
    pairs = [(first(affinity, f"t{n}", b"ab"), first(affinity, f"t{n}a", b"b")) for n in range(200)]
    assert sum(one == other for one, other in pairs) < 100


def test_models_that_a_node_serves_no_more_and_nodes_that_are_gone_leave_nothing() -> None:
    affinity = ring("a")
    affinity.put("a", ["m", "n"])
    affinity.put("a", ["n"])
    assert (list(affinity.of("m", "t", b"x")), list(affinity.of("n", "t", b"x"))) == ([], ["a"])
    affinity.remove("a")
    affinity.remove("never there")
    assert not affinity._rings
    assert not affinity._models
