from __future__ import annotations

import pytest

from services.router.errors import InvalidRequest
from services.router.face.arrivals import Fields

FIELDS = Fields([("a", "1"), ("b", ""), ("a", "2")])


def test_a_name_has_all_its_values_in_the_order_in_which_they_came() -> None:
    assert (FIELDS.all("a"), FIELDS.all("c")) == (("1", "2"), ())
    assert (FIELDS.first("a"), FIELDS.first("c")) == ("1", None)


def test_of_several_values_none_is_taken_for_the_only_one() -> None:
    with pytest.raises(InvalidRequest, match="a is given more than once"):
        FIELDS.only("a")


def test_an_empty_value_is_a_value() -> None:
    assert (FIELDS.only("b"), FIELDS.only("c")) == ("", None)
