"""Which GPUs a node's receipt names, held against those of its evidence."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from libs.aci.encoding import digest
from libs.aci.receipt_events import Event, Generated, RequestForwarded, RequestReceived, ResponseReturned
from libs.aci.receipt_gpus import CLAIM, GpusNotEvidenced, GpusNotNamed, listed, verify_gpus
from tests.unit.libs.aci.documents import receipt

MINE = frozenset({"4781", "559"})
NAMED = listed(MINE)
GENERATED = Generated("e", "03" * 32, "02" * 32, "{}")
CLAIMS = {CLAIM: True}


def verify(
    *between: Event, shown: frozenset[str] = MINE, claims: dict[str, bool] = CLAIMS, required: bool = True
) -> None:
    events = (RequestReceived(digest(b"a")), *between, ResponseReturned(digest(b"b")))
    verify_gpus(receipt(events=events), shown, claims, required=required)


def naming(gpus: str | None) -> Generated:
    return replace(GENERATED, gpus=gpus)


def test_gpus_are_named_by_their_ueids_in_order_and_none_by_no_member() -> None:
    assert NAMED == '["4781","559"]'
    assert json.loads(NAMED) == sorted(MINE)
    assert listed([]) is None


def test_a_receipt_that_names_the_gpus_of_the_evidence_is_accepted() -> None:
    verify(RequestForwarded(digest(b"a")), naming(NAMED))


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("claims", [CLAIMS, {}], ids=["claims", "claims nothing"])
@pytest.mark.parametrize(
    ("named", "shown"),
    [
        (["4781"], MINE),
        (["4781", "559", "7"], MINE),
        (["7", "8"], MINE),
        (["559", "4781"], MINE),
        ([], MINE),
        (["4781", "559"], frozenset[str]()),
    ],
    ids=["fewer", "more", "others", "out of order", "none", "some where none were shown"],
)
def test_one_that_names_others_is_refused_whatever_is_required(
    named: list[str], shown: frozenset[str], claims: dict[str, bool], required: bool
) -> None:
    with pytest.raises(GpusNotEvidenced) as refused:
        verify(naming(json.dumps(named, separators=(",", ":"))), shown=shown, claims=claims, required=required)
    assert refused.value.reason == "NODE_GPUS_NOT_EVIDENCED"


@pytest.mark.parametrize(
    "between",
    [
        (naming(None),),
        (RequestForwarded(digest(b"a")),),
        (RequestForwarded(digest(b"a")), naming(NAMED), naming(None)),
    ],
    ids=["no member", "no event", "in one of two"],
)
def test_one_that_names_none_is_refused_where_policy_requires_a_gpu(between: tuple[Event, ...]) -> None:
    with pytest.raises(GpusNotNamed) as refused:
        verify(*between)
    assert refused.value.reason == "NODE_GPUS_NOT_NAMED"
    verify(*between, required=False)


def test_a_node_of_an_earlier_version_names_none() -> None:
    verify(RequestForwarded(digest(b"a")), naming(None), claims={})


def test_what_reached_no_engine_names_none() -> None:
    verify()


def test_a_node_without_gpus_leaves_the_member_out() -> None:
    verify(RequestForwarded(digest(b"a")), naming(None), shown=frozenset())
