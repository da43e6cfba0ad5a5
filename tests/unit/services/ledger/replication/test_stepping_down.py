"""A writer gives up what others can do and it cannot; an outage that everybody has, or a short one, deposes nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from libs.errors import Code, MeshError
from services.ledger.replication.exchange import NOTHING_REACHED, Reached
from services.ledger.replication.others import OtherMember
from services.ledger.replication.settings import MemberAddress, Replication
from services.ledger.replication.stepping_down import SteppingDown, WriterCutOff

ALL = Reached(witnesses=True, kms=True, broker=True)
NO_WITNESSES, NO_KMS, NO_BROKER = replace(ALL, witnesses=False), replace(ALL, kms=False), replace(ALL, broker=False)
SETTINGS = Replication(tuple(MemberAddress(name, f"{name}:1") for name in ("one", "two", "three")))


class Away(MeshError):
    code = Code.UNAVAILABLE
    reason = "AWAY"


class StillTheWriter(Exception):
    """So much time has gone by, and it writes."""


class Other(OtherMember):
    """Another member that says what it reaches; without that it does not answer."""

    def __init__(self, reaches: Reached | None) -> None:
        self._reaches = reaches

    async def reached(self) -> Reached:
        if self._reaches is None:
            raise Away("away")
        return self._reaches


class Around:
    """What the writer finds at one look after the other; then the same as at the last."""

    def __init__(self, found: Sequence[Reached]) -> None:
        self._found = list(found)
        self.pauses: list[float] = []

    async def look(self) -> Reached:
        return self._found.pop(0) if len(self._found) > 1 else self._found[0]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) > 20:
            raise StillTheWriter


async def looks(found: Sequence[Reached], *others: Reached | None, has_begun: bool = True) -> list[float]:
    """Let a writer look around until it gives up; return how long it waited between."""
    around = Around(found)
    stepping_down = SteppingDown(SETTINGS, around, [Other(each) for each in others], around.pause)
    stepping_down.has_begun = has_begun
    with pytest.raises(WriterCutOff):
        await stepping_down.keep()
    return around.pauses


async def goes_on(found: Sequence[Reached], *others: Reached | None, has_begun: bool = True) -> None:
    with pytest.raises(StillTheWriter):
        await looks(found, *others, has_begun=has_begun)


@pytest.mark.parametrize("own", [NO_BROKER, replace(NO_WITNESSES, broker=False)])
async def test_what_another_reaches_and_the_writer_does_not_ends_it_after_four_looks(own: Reached) -> None:
    assert await looks([own], ALL, None) == [SETTINGS.election_seconds] * 4


@pytest.mark.parametrize(
    "others", [(NO_BROKER, NO_BROKER), (NO_KMS, NO_WITNESSES), (NOTHING_REACHED, None), (None, None)]
)
async def test_an_outage_that_everybody_has_ends_no_writer(others: tuple[Reached | None, ...]) -> None:
    await goes_on([NO_BROKER], *others)


async def test_a_writer_that_reaches_all_goes_on() -> None:
    await goes_on([ALL], ALL, ALL)


async def test_a_short_outage_ends_no_writer() -> None:
    await goes_on([NO_BROKER, NO_BROKER, NO_BROKER, ALL, NO_BROKER, NO_BROKER, NO_BROKER, ALL], ALL, ALL)


async def test_a_writer_needs_the_witnesses_until_it_has_begun() -> None:
    await looks([NO_WITNESSES], ALL, None, has_begun=False)
    await goes_on([NO_WITNESSES], ALL, ALL)


async def test_a_writer_without_the_kms_goes_only_where_the_others_go_on_without_it() -> None:
    """It could not come back, as it would have no certificate."""
    await goes_on([NO_KMS], ALL, NO_KMS)
    await looks([NO_KMS], ALL, ALL)
