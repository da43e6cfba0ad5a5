"""A prompt goes only to what stands at the moment at which it would leave."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from libs.aci.endpoints import CHAT
from libs.aci.json_values import FEW_VALUES
from libs.aci.receipt_events import UpstreamFailed
from libs.errors import MeshError
from libs.policy import constraints as policy_constraints
from libs.policy.constraints import TenantConstraints
from libs.policy.foreign import ForeignKind, ForeignProvider
from services.router.prompt import Constraints, parse
from services.router.reading import Reading
from services.router.routing.foreign.adapter import Declaration, ForeignNotVerified
from services.router.routing.foreign.known import Known
from services.router.routing.foreign.route import ForeignRoute
from services.router.routing.foreign.selection import Wanted
from services.router.routing.hop import Errand, Reached, Step
from tests.fakes.ledgers import TENANT
from tests.fakes.policies import KeeperTwin, PolicyTwin
from tests.fakes.routers import PATIENCE_SECONDS, prompt

PROVIDER = ForeignProvider(
    "a", ForeignKind.OPENAI, "https://a.example", {"m": "n"}, best_effort=True, tenants=frozenset({TENANT.tenant_id})
)
UNVERIFIED = UpstreamFailed(False, "n", "never_verified", "foreign/a")
BEST_EFFORT = TenantConstraints(verified_only=False)


class Revoked(MeshError):
    reason = "REVOKED_FOR_A_TEST"


async def nothing() -> None:
    """Nothing happens while a provider is connected to."""


@dataclass(slots=True)
class StandingTwin:
    """Is reached after whatever happens meanwhile; holds under policies of at most this version."""

    meanwhile: Callable[[], Awaitable[None]]
    until: float = field(default_factory=lambda: time.time() + 600)
    session: bytes | None = None
    supporting: tuple[bytes, ...] = ()
    verified_at: float = 0.0
    last_version: int = 3
    handed: int = 0
    addressed_by: str = ""
    """The thread that wrote the prompt anew."""

    def uphold(self, policy: Any, now: int) -> float:
        if policy.version > self.last_version:
            raise Revoked("no more")
        return self.until

    def address(self, errand: Errand) -> bytes:
        self.addressed_by = threading.current_thread().name
        return errand.prompt.forwarded

    async def forward(self, errand: Errand, body: bytes) -> AsyncGenerator[Step, None]:
        await self.meanwhile()
        yield Reached("sha256:00", UNVERIFIED)
        self.handed += 1


class AdapterTwin:
    """Verifies to what it is given, one after the other."""

    declaration = Declaration("service", frozenset(), receipts=False, endpoints=frozenset({CHAT}))

    def __init__(self, *standings: StandingTwin) -> None:
        self._standings = iter(standings)

    async def verify(self, policy: object) -> StandingTwin:
        return next(self._standings)


class RecordTwin:
    async def keep(self, standing: object) -> None:
        """Nothing of these is cited."""


class Bench:
    """A route to one provider, by the first of these standings."""

    def __init__(self, *standings: StandingTwin) -> None:
        policy = PolicyTwin(foreign_providers=(PROVIDER,), constraints=policy_constraints.Constraints(BEST_EFFORT))
        self.policy = KeeperTwin(cast(Any, policy))
        self.known = Known(PROVIDER, AdapterTwin(*standings), cast(Any, self.policy), cast(Any, RecordTwin()))

    async def route(self, reading: Reading) -> ForeignRoute:
        await self.known.refresh()
        wanted = Wanted("m", CHAT, Constraints(), TENANT.tenant_id, BEST_EFFORT)
        return ForeignRoute(self.known, wanted, cast(Any, {self.known.name: 0}), reading)

    def enact(self, version: int) -> None:
        self.policy.enact(replace(cast(Any, self.policy.current), version=version))

    async def forward(self, **members: Any) -> list[Step]:
        asked = parse(prompt(model="m", **members), CHAT)
        errand = Errand(asked, CHAT, "req_1", TENANT.tenant_id, PATIENCE_SECONDS, required=True)
        async with Reading() as reading:
            return [step async for step in (await self.route(reading)).forward(errand)]


@pytest.mark.parametrize(("values", "thread"), [(1, "MainThread"), (FEW_VALUES + 1, "request-reading_0")])
async def test_a_prompt_of_many_values_is_written_anew_beside_the_event_loop(values: int, thread: str) -> None:
    standing = StandingTwin(nothing)
    assert await Bench(standing).forward(stop=[1] * values) == [Reached("sha256:00", UNVERIFIED)]
    assert standing.addressed_by == thread


async def test_what_policy_revokes_while_it_is_connected_to_gets_no_prompt() -> None:
    async def revoke() -> None:
        bench.enact(4)

    standing = StandingTwin(revoke)
    bench = Bench(standing)
    with pytest.raises(ForeignNotVerified, match="REVOKED_FOR_A_TEST"):
        await bench.forward()
    assert standing.handed == 0


async def test_what_still_holds_under_the_policy_after_is_handed_the_prompt() -> None:
    async def publish() -> None:
        bench.enact(4)

    standing = StandingTwin(publish, last_version=4)
    bench = Bench(standing)
    assert await bench.forward() == [Reached("sha256:00", UNVERIFIED)]
    assert standing.handed == 1


async def test_what_was_verified_anew_while_it_was_connected_to_is_connected_to_again() -> None:
    async def refresh() -> None:
        bench.known.hasten()
        await bench.known.refresh()

    before, after = StandingTwin(refresh), StandingTwin(nothing)
    bench = Bench(before, after)
    assert await bench.forward() == [Reached("sha256:00", UNVERIFIED)]
    assert (before.handed, after.handed) == (0, 1)


async def test_what_does_not_hold_under_the_policy_that_came_meanwhile_is_not_taken_up() -> None:
    bench = Bench()

    class Verifying(AdapterTwin):
        async def verify(self, policy: object) -> StandingTwin:
            bench.enact(4)
            return StandingTwin(nothing)

    bench.known.adapter = Verifying()
    await bench.known.refresh()
    assert (bench.known.standing, bench.known.refusal) == (None, "REVOKED_FOR_A_TEST")
