"""What a client of HTTP/2 may send, by a clock that stands until a test moves it."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, Frame, PingFrame, RstStreamFrame
from hypothesis import given
from hypothesis import strategies as st

from services.router.face.frames import MAX_FRAME_BYTES, Allowance, FramesRefused

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING = PingFrame(0, b"12345678").serialize()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(clock: Clock) -> Allowance:
    allowance = Allowance(clock)
    allowance.pass_over(PREFACE)
    return allowance


def until_refused(allowance: Allowance, frame: Frame) -> int:
    """Say how many of a frame may come."""
    for number in range(5000):
        try:
            allowance.pass_over(frame.serialize())
        except FramesRefused as error:
            return number if error.code is ErrorCodes.ENHANCE_YOUR_CALM else -1
    raise AssertionError("it may come without end")


def test_so_many_frames_may_come_at_once_and_no_more() -> None:
    assert until_refused(begun(Clock()), PingFrame(0, b"12345678")) == 1000


def test_a_reset_costs_ten() -> None:
    assert until_refused(begun(Clock()), RstStreamFrame(1, 8)) == 100


def test_data_that_carries_something_costs_nothing() -> None:
    allowance = begun(Clock())
    for _ in range(5000):
        allowance.pass_over(DataFrame(1, b"x" * 256).serialize())
    assert until_refused(allowance, DataFrame(1, b"x" * 255)) == 1000


@pytest.mark.parametrize(("seconds", "more"), [(0.0, 0), (1.0, 100), (1_000_000.0, 1000)])
def test_time_gives_back_what_was_spent_and_never_more_than_there_was(seconds: float, more: int) -> None:
    clock = Clock()
    allowance = begun(clock)
    allowance.pass_over(PING * 1000)
    clock.now = seconds
    assert until_refused(allowance, PingFrame(0, b"12345678")) == more


def test_what_is_sent_to_the_client_may_be_acknowledged() -> None:
    allowance = begun(Clock())
    for _ in range(5000):
        allowance.pass_over(PING)
        allowance.earn()


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, (1 << 24) - 1])
def test_a_frame_that_is_too_long_is_refused_by_its_head(length: int) -> None:
    with pytest.raises(FramesRefused) as refused:
        begun(Clock()).pass_over(length.to_bytes(3, "big") + b"\x00\x00\x00\x00\x00\x01")
    assert refused.value.code is ErrorCodes.FRAME_SIZE_ERROR


@given(st.lists(st.integers(0, 300), max_size=20), st.data())
def test_frames_are_counted_alike_however_they_are_cut(lengths: list[int], data: st.DataObject) -> None:
    sent = PREFACE + b"".join(DataFrame(1, b"x" * length).serialize() for length in lengths) + PING * 990
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=10)))
    costly = 990 + sum(length < 256 for length in lengths)
    allowance = Allowance(Clock())
    try:
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            allowance.pass_over(sent[start:end])
    except FramesRefused:
        assert costly > 1000
    else:
        assert costly <= 1000
