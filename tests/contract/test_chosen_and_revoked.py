"""What operators or a node's own life change after a real router has chosen the node: it is handed no prompt.

The nodes are real members with evidence of their own, the way to them is the router's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from libs.aci.endpoints import CHAT
from libs.policy.revocation import RevocationKind
from services.router.prompt import parse
from services.router.routing.hop import Errand, NodeNotVerified, NodeUnavailable, Reached, forward
from services.router.routing.listed import Upstream
from tests.fakes.joined_mesh import JoinedMesh, hear
from tests.fakes.ledgers import TENANT
from tests.fakes.lying_list import LyingList, lying_list
from tests.fakes.routers import PATIENCE_SECONDS, prompt


@pytest.fixture
async def line(mesh: JoinedMesh) -> AsyncIterator[LyingList]:
    async with lying_list(mesh) as running:
        yield running


async def chosen(line: LyingList) -> Upstream:
    node = await line.node()
    await line.say(await line.honestly(node))
    return line.choose()


async def reach(line: LyingList, upstream: Upstream) -> Reached:
    """Take the step after which a prompt is handed over."""
    errand = Errand(parse(prompt(), CHAT), CHAT, "req_1", TENANT.tenant_id, PATIENCE_SECONDS, required=True)
    async with aclosing(forward(upstream, errand, line.upstreams.settings)) as steps:
        reached = await anext(steps)
        assert isinstance(reached, Reached)
        return reached


async def test_a_node_that_was_chosen_is_reached(line: LyingList) -> None:
    upstream = await chosen(line)
    assert (await reach(line, upstream)).outcome.model_id in upstream.candidate.models


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (RevocationKind.MEASUREMENT, "MEASUREMENT_REVOKED"),
        (RevocationKind.NODE, "NODE_REVOKED"),
        (RevocationKind.KEY, "KEY_REVOKED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_node_that_is_revoked_after_it_was_chosen_gets_no_prompt(
    line: LyingList, kind: RevocationKind, reason: str
) -> None:
    """Nobody has judged it again yet: who asks for the way is told at once."""
    upstream = await chosen(line)
    lease = upstream.lease
    value = {
        RevocationKind.MEASUREMENT: lease.appraisal.to_json()["measurement"]["compose_hash"],
        RevocationKind.NODE: lease.certificate.spiffe_id,
        RevocationKind.KEY: lease.certificate.spki_sha256.hex(),
    }[kind]
    line.router.policy.accept_revocations([line.mesh.revocation(kind, value)])
    hear(line.router.policy, time.time())
    with pytest.raises(NodeNotVerified, match=reason) as refused:
        await reach(line, upstream)
    assert (refused.value.status, refused.value.type) == (503, "upstream_verification_failed")


async def test_a_node_whose_measurement_the_next_policy_does_not_list_gets_no_prompt(line: LyingList) -> None:
    upstream = await chosen(line)
    keeper = line.router.policy
    keeper.accept(line.mesh.successor(keeper.current, roles=line.mesh.without("node")))
    hear(keeper, time.time())
    with pytest.raises(NodeNotVerified, match="MEASUREMENT_NOT_ALLOWED"):
        await reach(line, upstream)


async def test_a_node_that_has_gone_since_gets_no_prompt(line: LyingList) -> None:
    upstream = await chosen(line)
    await line.stop_nodes()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while upstream.link.is_ready:  # noqa: ASYNC110 - until the router's end of the connection has heard of it
            await asyncio.sleep(0.01)
    with pytest.raises(NodeUnavailable, match=r"PEER_UNREACHABLE|PEER_UNAVAILABLE") as refused:
        await reach(line, upstream)
    assert (refused.value.status, refused.value.type) == (502, "upstream_error")
