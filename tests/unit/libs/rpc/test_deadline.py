from __future__ import annotations

from contextvars import copy_context

import pytest

from libs.rpc import deadline


def test_without_a_caller_the_limit_counts() -> None:
    assert deadline.outgoing_timeout(3.0) == 3.0
    assert deadline.remaining_seconds() is None


def _timeout_under(remaining: float | None, limit: float) -> float:
    deadline.adopt(remaining)
    return deadline.outgoing_timeout(limit)


def test_a_margin_to_answer_in_is_kept_back() -> None:
    assert copy_context().run(_timeout_under, 100.0, 200.0) == pytest.approx(99.75, abs=0.1)
    assert copy_context().run(_timeout_under, 1.0, 200.0) <= 0.9


def test_a_stream_without_a_deadline_leaves_the_limit() -> None:
    assert copy_context().run(_timeout_under, None, 7.0) == 7.0


def test_a_spent_deadline_asks_nobody() -> None:
    with pytest.raises(deadline.DeadlineSpent) as caught:
        copy_context().run(_timeout_under, 0.0, 7.0)
    assert caught.value.reason == "DEADLINE_SPENT"
