"""Which machines policy's lists let pass; a list may name a product as a whole or one model of it."""

from __future__ import annotations

import pytest

from libs.errors import MeshError
from libs.tee.device import Device, DeviceLists
from libs.tee.steps import ignore

ID = "ab" * 32


def refusal(lists: DeviceLists, family: str) -> str:
    with pytest.raises(MeshError) as refused:
        lists.rule().holds_until(Device(ID, family), 0, ignore)
    return refused.value.reason


@pytest.mark.parametrize(
    ("revoked", "family"),
    [
        ("90c06f000000", "90c06f000000"),
        ("genoa", "genoa"),
        ("genoa", "genoa-19-11"),
        ("genoa-19-11", "genoa-19-11"),
        # A report of version 2 does not say which model it is, so it may be the revoked one.
        ("genoa-19-11", "genoa"),
    ],
)
def test_a_revoked_family_is_refused_however_much_the_report_says(revoked: str, family: str) -> None:
    assert refusal(DeviceLists(revoked_families=frozenset({revoked})), family) == "CPU_FAMILY_REVOKED"


@pytest.mark.parametrize(("revoked", "family"), [("genoa-19-11", "genoa-19-a0"), ("milan", "genoa"), ("geno", "genoa")])
def test_another_family_is_not_revoked(revoked: str, family: str) -> None:
    DeviceLists(revoked_families=frozenset({revoked})).rule().holds_until(Device(ID, family), 0, ignore)


def test_a_listed_product_covers_its_models_and_a_listed_model_no_product() -> None:
    DeviceLists(allowed_families=frozenset({"genoa"})).rule().holds_until(Device(ID, "genoa-19-11"), 0, ignore)
    lists = DeviceLists(allowed_families=frozenset({"genoa-19-11"}))
    assert refusal(lists, "genoa") == "CPU_FAMILY_NOT_LISTED"
    assert refusal(lists, "genoa-19-a0") == "CPU_FAMILY_NOT_LISTED"


def test_either_list_is_enough_and_revocation_goes_first() -> None:
    lists = DeviceLists(allowed=frozenset({ID}), allowed_families=frozenset({"milan"}))
    lists.rule().holds_until(Device(ID, "genoa"), 0, ignore)
    assert refusal(DeviceLists(allowed=frozenset({"cd" * 32})), "genoa") == "DEVICE_NOT_LISTED"
    assert refusal(DeviceLists(allowed=frozenset({ID}), revoked=frozenset({ID})), "genoa") == "DEVICE_REVOKED"
