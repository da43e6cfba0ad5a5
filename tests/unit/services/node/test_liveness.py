"""When an engine counts as hanging: it was asked, and nothing came of it."""

from __future__ import annotations

import asyncio

import pytest

from services.node.channel import EngineTooSlow, EngineUnavailable
from services.node.liveness import until_hanging

SILENT_SECONDS = 0.02
PATIENCE_SECONDS = 10.0


class Script:
    """An engine that is asked and heard of as a test says, one step at each look; after the last it is left alone."""

    def __init__(self, *steps: str) -> None:
        self.signs_of_life = 0
        self._steps = iter(steps)
        self._step = ""
        self.asked = 0
        self.over = asyncio.Event()

    async def look(self, seconds: float) -> None:
        assert seconds > 0
        step = next(self._steps, None)
        if step is None:
            self.over.set()
            await asyncio.Event().wait()
        self._step = str(step)
        if self._step == "heard":
            self.signs_of_life += 1

    async def ask(self) -> None:
        self.asked += 1
        if self._step == "answers":
            return
        if self._step == "wrong":
            raise EngineUnavailable("status 500")
        if self._step == "late":
            raise EngineTooSlow("late")
        if self._step == "heard meanwhile":
            self.signs_of_life += 1
        await asyncio.Event().wait()


async def outcome(script: Script) -> str | None:
    """Why it hangs; None where it does not after the last step."""
    hanging = asyncio.create_task(until_hanging(script, script.ask, SILENT_SECONDS, script.look))
    over = asyncio.create_task(script.over.wait())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.wait({hanging, over}, return_when=asyncio.FIRST_COMPLETED)
    why = hanging.result() if hanging.done() else None
    for task in (hanging, over):
        task.cancel()
    await asyncio.gather(hanging, over, return_exceptions=True)
    return why


async def test_one_that_is_heard_of_is_not_asked() -> None:
    script = Script("heard", "heard", "heard")
    assert await outcome(script) is None
    assert script.asked == 0


@pytest.mark.parametrize("silence", [("nothing", "nothing"), ("late", "late"), ("heard", "nothing", "late")])
async def test_one_that_answers_no_question_and_is_not_heard_of_hangs(silence: tuple[str, ...]) -> None:
    assert await outcome(Script(*silence)) == "silent for 0.02 s"


@pytest.mark.parametrize(
    "signs",
    [
        ("nothing", "answers", "nothing"),
        ("nothing", "heard", "nothing"),
        ("heard meanwhile", "heard meanwhile", "heard meanwhile"),
        ("wrong", "wrong", "answers", "wrong", "wrong"),
        ("wrong", "wrong", "heard", "wrong", "wrong"),
    ],
)
async def test_a_sign_of_life_begins_the_count_anew(signs: tuple[str, ...]) -> None:
    assert await outcome(Script(*signs)) is None


async def test_one_that_answers_wrongly_three_times_does_not_work() -> None:
    assert await outcome(Script("wrong", "wrong", "wrong")) == "status 500"
