"""One verification at a time, whoever asks; what fails takes nothing away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from libs.aci.claims import Claim, Claims
from libs.aci.endpoints import CHAT
from libs.aci.session import TlsBinding, session_document
from libs.errors import MeshError
from libs.policy.foreign import ForeignKind, ForeignProvider
from services.router.routing.foreign.adapter import Declaration, ForeignNotVerified, Standing
from services.router.routing.foreign.known import Known, rest_seconds
from services.router.routing.hop import Errand, Step
from tests.fakes.policies import PolicyTwin
from tests.fakes.routers import PATIENCE_SECONDS

PROVIDER = ForeignProvider("a", ForeignKind.ACI, "https://a.example", {"m": "n"})


class Refused(MeshError):
    reason = "REFUSED_FOR_A_TEST"


@dataclass(slots=True)
class StandingTwin:
    """What a verification left. Unverified, so that nothing need be logged."""

    session: bytes | None = None
    supporting: tuple[bytes, ...] = ()
    verified_at: float = 0.0
    until: float = field(default_factory=lambda: time.time() + 600)

    def uphold(self, policy: object, now: int) -> float:
        return self.until

    def address(self, errand: Errand) -> bytes:
        raise AssertionError("whether a provider is verified is decided before anything is forwarded")

    def forward(self, errand: Errand, body: bytes) -> AsyncGenerator[Step, None]:
        raise AssertionError("whether a provider is verified is decided before anything is forwarded")


class AdapterTwin:
    """Verifies when it is let, and as often as it is asked."""

    declaration = Declaration("service", frozenset(), receipts=False, endpoints=frozenset({CHAT}))

    def __init__(self) -> None:
        self.asked = 0
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.refusal: MeshError | None = None

    async def verify(self, policy: object) -> Standing:
        self.asked += 1
        self.begun.set()
        await self.go_on.wait()
        if self.refusal is not None:
            raise self.refusal
        return StandingTwin()


class RecordTwin:
    def __init__(self) -> None:
        self.kept: list[Standing] = []
        self.refusal: MeshError | None = None

    async def keep(self, standing: Standing) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.kept.append(standing)


def known(adapter: AdapterTwin, record: RecordTwin | None = None) -> Known:
    return Known(PROVIDER, adapter, cast(Any, PolicyTwin()), cast(Any, record or RecordTwin()))


async def verified(adapter: AdapterTwin) -> tuple[Known, Standing]:
    one = known(adapter)
    await one.refresh()
    assert one.standing is not None
    return one, one.standing


async def until_set(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await event.wait()


@pytest.mark.parametrize(("left", "rest"), [(3600, 1800), (7 * 86400, 43200), (-5, 1)])
def test_a_verification_is_due_before_it_ends_and_before_what_it_kept_is_let_go(left: float, rest: float) -> None:
    assert rest_seconds(left) == rest


async def test_many_who_find_it_outdated_share_one_verification() -> None:
    adapter = AdapterTwin()
    one, outdated = await verified(adapter)
    adapter.go_on.clear()
    waiting = [asyncio.create_task(one.renew(outdated)) for _ in range(5)]
    await until_set(adapter.begun)
    adapter.go_on.set()
    await asyncio.gather(*waiting)
    assert adapter.asked == 2
    assert one.standing is not outdated


async def test_many_who_find_it_outdated_share_one_failure() -> None:
    adapter = AdapterTwin()
    one, outdated = await verified(adapter)
    adapter.go_on.clear()
    adapter.refusal = Refused("no")
    waiting = [asyncio.create_task(one.renew(outdated)) for _ in range(5)]
    await until_set(adapter.begun)
    adapter.go_on.set()
    failures = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(failure) for failure in failures] == [ForeignNotVerified] * 5
    assert {getattr(failure, "why", None) for failure in failures} == {"REFUSED_FOR_A_TEST"}
    assert adapter.asked == 2
    assert one.standing is outdated


async def test_a_renewal_that_has_just_failed_is_not_tried_by_every_request() -> None:
    adapter = AdapterTwin()
    one, outdated = await verified(adapter)
    adapter.refusal = Refused("no")
    for _ in range(3):
        with pytest.raises(ForeignNotVerified, match="REFUSED_FOR_A_TEST"):
            await one.renew(outdated)
    assert adapter.asked == 2


async def test_one_who_leaves_does_not_fail_those_who_wait() -> None:
    adapter = AdapterTwin()
    one, outdated = await verified(adapter)
    adapter.begun.clear()
    adapter.go_on.clear()
    leaving = asyncio.create_task(one.renew(outdated))
    await until_set(adapter.begun)
    staying = asyncio.create_task(one.renew(outdated))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    adapter.go_on.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await staying
    assert one.standing is not outdated


async def test_a_failed_refresh_leaves_what_stands_and_is_not_due_at_once() -> None:
    adapter = AdapterTwin()
    one, standing = await verified(adapter)
    assert not one.is_due()
    adapter.refusal = Refused("no")
    one.hasten()
    assert one.is_due()
    await one.refresh()
    assert one.standing is standing
    assert one.is_live
    assert one.refusal == "REFUSED_FOR_A_TEST"
    assert not one.is_due()


async def test_a_session_that_could_not_be_logged_is_not_used() -> None:
    record = RecordTwin()
    record.refusal = Refused("the outbox is full")
    one = known(AdapterTwin(), record)
    await one.refresh()
    assert one.standing is None
    assert one.refusal == "REFUSED_FOR_A_TEST"


async def test_what_policy_withdrew_meanwhile_is_not_taken_up() -> None:
    adapter = AdapterTwin()
    adapter.go_on.clear()
    one = known(adapter)
    refreshing = asyncio.create_task(one.refresh())
    await until_set(adapter.begun)
    one.withdraw("NOT_LISTED")
    adapter.go_on.set()
    await refreshing
    assert one.standing is None


async def test_a_renewal_that_everybody_left_is_still_due() -> None:
    adapter = AdapterTwin()
    one, outdated = await verified(adapter)
    adapter.begun.clear()
    adapter.go_on.clear()
    leaving = asyncio.create_task(one.renew(outdated))
    await until_set(adapter.begun)
    leaving.cancel()
    await asyncio.wait({leaving})
    assert one.is_due()


SEALED = session_document(
    upstream_name="foreign/a",
    endpoint="https://a.example",
    verifier_id="a-test/v1",
    established_at=1,
    expires_at=2**33,
    identity={},
    bindings=(TlsBinding("https://a.example", "00" * 32),),
    claims=Claims(tee_attested=Claim("asserted", "hardware_proven", "a test says so")),
    evidence=b"{}",
    extra={},
)


@pytest.mark.parametrize(
    ("declared", "refusal"),
    [
        (frozenset({"tee_attested"}), "NOT_VERIFIED_YET"),
        (frozenset({"tcb_up_to_date"}), "DECLARATION_EXCEEDED"),
        (frozenset(), "DECLARATION_EXCEEDED"),
    ],
    ids=["kept", "another claim", "nothing is ever verified"],
)
async def test_a_session_that_says_more_than_its_adapter_declares_is_not_used(
    declared: frozenset[str], refusal: str
) -> None:
    class Sealing(AdapterTwin):
        declaration = Declaration("service", declared, receipts=False, endpoints=frozenset({CHAT}))

        async def verify(self, policy: object) -> Standing:
            return StandingTwin(session=SEALED)

    one = known(Sealing())
    await one.refresh()
    assert one.refusal == refusal
    assert one.session == (SEALED if refusal == "NOT_VERIFIED_YET" else None)


async def test_a_provider_that_shows_less_than_before_is_not_taken_up_silently() -> None:
    class Sealing(AdapterTwin):
        declaration = Declaration("service", frozenset({"tee_attested"}), receipts=False, endpoints=frozenset({CHAT}))

        async def verify(self, policy: object) -> Standing:
            self.asked += 1
            return StandingTwin(session=SEALED if self.asked == 1 else None)

    one = known(Sealing())
    await one.refresh()
    one.hasten()
    with capture_logs() as logs:
        await one.refresh()
    assert [entry["event"] for entry in logs] == [
        "foreign provider shows less than before",
        "foreign provider taken up",
    ]
