"""What was verified ends with the first thing that it rests on, and no session is demanded that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from libs.aci.endpoints import CHAT
from libs.aci.session import Session
from libs.client.attestation import Established
from libs.policy.document import Policy
from services.router.prompt import Constraints
from services.router.routing.foreign.aci import _until
from services.router.routing.foreign.aci_standing import AciStanding
from services.router.routing.foreign.adapter import ProofOutdated
from tests.fakes.foreign_routers import HERE
from tests.fakes.ledgers import TENANT
from tests.fakes.routers import RouterBench

Rests = tuple[Established, dict[str, Session], Policy]


@pytest.fixture
async def standing(router: RouterBench) -> AciStanding:
    route = router.foreign.choose(HERE, CHAT, Constraints(), TENANT.tenant_id, frozenset())
    assert route is not None
    standing = await route.known.standing_for(route.wanted)
    assert isinstance(standing, AciStanding)
    return standing


def _keyset(rests: Rests, until: int) -> Rests:
    established, sessions, policy = rests
    return replace(established, keyset=replace(established.keyset, not_after=until)), sessions, policy


def _verdict(rests: Rests, until: int) -> Rests:
    established, sessions, policy = rests
    return replace(established, verdict=replace(established.verdict, valid_until=until)), sessions, policy


def _sessions(rests: Rests, until: int) -> Rests:
    established, sessions, policy = rests
    (name, session), *_ = sessions.items()
    both = {name: replace(session, expires_at=until), "00" * 32: replace(session, expires_at=until - 1)}
    return established, both, policy


def _evidence(rests: Rests, until: int) -> Rests:
    established, sessions, policy = rests
    return established, sessions, replace(policy, evidence_max_age_seconds=until - NOW)


NOW = int(time.time())


@pytest.mark.parametrize("shorten", [_keyset, _verdict, _sessions, _evidence])
async def test_a_service_stands_until_the_first_thing_ends(
    router: RouterBench, standing: AciStanding, shorten: Callable[[Rests, int], Rests]
) -> None:
    policy: Policy = router.member.policy.current
    established, sessions, policy = shorten((standing.established, dict(standing.accepted), policy), NOW + 10)
    assert _until(established, sessions, policy, NOW) == NOW + 10


async def test_only_sessions_that_hold_are_demanded(standing: AciStanding) -> None:
    (name, session) = next(iter(standing.accepted.items()))
    ended = replace(session, expires_at=int(time.time()) - 1)
    assert replace(standing, accepted={name: session, "00" * 32: ended})._demands()["aci_session_ids"] == [name]
    with pytest.raises(ProofOutdated, match="have ended"):
        replace(standing, accepted={name: ended})._demands()
