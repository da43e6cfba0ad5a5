"""A registry that lies about nodes, over the real watch of a real router: it can hide one, and nothing else.

No lie makes a router use a node whose evidence does not pass, or anything else in the place of a node whose does.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from teemesh.registry.v1 import registry_pb2

from libs.aci.session import SessionIdMismatch
from libs.policy.revocation import RevocationKind
from services.devtee.machine import VirtualTd
from services.router.errors import UpstreamVerificationFailed
from tests.fakes.joined_mesh import JoinedMesh, hear
from tests.fakes.leases import MODEL, WEIGHTS
from tests.fakes.ledgers import TENANT
from tests.fakes.lying_list import CLAIMS, MAX_LISTED, DebugTd, LyingList, lying_list
from tests.fakes.relay import wire
from tests.fakes.throwaway_ca import ThrowawayCa


@pytest.fixture
async def line(mesh: JoinedMesh) -> AsyncIterator[LyingList]:
    async with lying_list(mesh) as running:
        yield running


async def test_a_node_that_is_listed_as_it_is_is_used(line: LyingList) -> None:
    node = await line.node()
    await line.say(await line.honestly(node))
    chosen = line.choose()
    assert chosen.candidate.spiffe_id == node.spiffe_id
    assert chosen.lease.certificate.spki_sha256 == node.member.identity.current.certificate.spki_sha256


async def test_a_node_that_is_hidden_is_not_used_and_nothing_takes_its_place(line: LyingList) -> None:
    hidden, other = await line.node(), await line.node()
    await line.say(await line.honestly(hidden), await line.honestly(other))
    await line.say(await line.honestly(other))
    assert {line.choose().candidate.spiffe_id for _ in range(8)} == {other.spiffe_id}
    await line.say()
    with pytest.raises(UpstreamVerificationFailed):
        line.choose()


async def refused_node(line: LyingList, reason: str, **node: Any) -> None:
    """A node that the registry says the best of, beside an honest one: the honest one alone is used.

    Its certificate is genuine, which a careless KMS is to blame for.
    """
    honest, other = await line.node(), await line.node(careless=True, **node)
    best = other.posing_as(await line.appraised(honest))
    await line.say(line.listed(best, other.endpoint))
    assert line.why_none() == reason
    await line.say(line.listed(best, other.endpoint), await line.honestly(honest))
    assert {line.choose().candidate.spiffe_id for _ in range(8)} == {honest.spiffe_id}


async def test_a_node_of_another_measurement_is_not_used(line: LyingList) -> None:
    await refused_node(line, "MEASUREMENT_NOT_ALLOWED", td=line.mesh.boot("node", "another image"))


async def test_a_node_in_a_debug_td_is_not_used(line: LyingList) -> None:
    measured = line.mesh.tds["node"]
    td: VirtualTd = DebugTd(measured.machine, measured.app_compose.encode(), measured.identity, int(time.time()))
    await refused_node(line, "TD_DEBUG", td=td)


async def test_a_node_with_other_weights_is_not_used(line: LyingList) -> None:
    models = [{"id": MODEL, "weights_sha256": "66" * 32}]
    await refused_node(line, "MODEL_NOT_ALLOWED", claims={**CLAIMS, "models": models})


async def test_a_node_with_another_model_is_not_used(line: LyingList) -> None:
    models = [{"id": "larger", "weights_sha256": WEIGHTS}]
    await refused_node(line, "MODEL_NOT_ALLOWED", claims={**CLAIMS, "models": models})


async def test_a_node_that_serves_no_model_serves_none_whatever_is_listed(line: LyingList) -> None:
    node = await line.node(claims={**CLAIMS, "models": []})
    await line.say(await line.honestly(node))
    assert line.why_none() is None
    assert line.upstreams.weights(TENANT.tenant_id) == {}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (RevocationKind.MEASUREMENT, "MEASUREMENT_REVOKED"),
        (RevocationKind.NODE, "NODE_REVOKED"),
        (RevocationKind.KEY, "KEY_REVOKED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_revoked_node_that_stays_listed_is_used_no_more(
    line: LyingList, kind: RevocationKind, reason: str
) -> None:
    node = await line.node()
    listed = await line.honestly(node)
    await line.say(listed)
    lease = line.choose().lease
    value = {
        RevocationKind.MEASUREMENT: lease.appraisal.to_json()["measurement"]["compose_hash"],
        RevocationKind.NODE: node.spiffe_id,
        RevocationKind.KEY: lease.certificate.spki_sha256.hex(),
    }[kind]
    line.router.policy.accept_revocations([line.mesh.revocation(kind, value)])
    hear(line.router.policy, time.time())
    await line.router.reappraise()
    assert line.why_none() == reason
    await line.say()
    await line.say(listed)
    assert line.why_none() == reason


async def test_another_nodes_endpoint_is_not_taken_for_a_nodes_own(line: LyingList) -> None:
    node, other = await line.node(), await line.node()
    await line.say(line.listed(await line.appraised(node), other.endpoint))
    assert line.why_none() == "NODE_NAME_MISMATCH"


async def test_another_node_under_a_nodes_name_is_not_used(line: LyingList) -> None:
    """All of it the other's, but for the name."""
    node, other = await line.node(), await line.node()
    await line.say(line.listed(await line.appraised(other), other.endpoint, spiffe_id=node.spiffe_id))
    assert line.why_none() == "NODE_NAME_MISMATCH"


async def test_a_name_that_is_listed_twice_is_one_node(line: LyingList) -> None:
    node, other = await line.node(), await line.node()
    await line.say(
        await line.honestly(node), line.listed(await line.appraised(other), other.endpoint, spiffe_id=node.spiffe_id)
    )
    assert line.why_none() == "NODE_NAME_MISMATCH"
    await line.say(await line.honestly(node), await line.honestly(node))
    assert len(line.upstreams.current_sessions(None, None)) == 1


async def test_a_service_of_another_role_is_no_node(line: LyingList) -> None:
    """The registry names itself: a genuine certificate, and evidence that passes, for what it is."""
    node = await line.node()
    await line.say(line.listed(await line.appraised(node), line.registry_target))
    assert line.why_none() == "PEER_UNREACHABLE"


async def test_a_stranger_with_a_ca_of_its_own_is_no_node(line: LyingList) -> None:
    node = await line.node()
    ca = ThrowawayCa(line.mesh.folder)
    files = ca.issue("node.mesh.test", "node")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    async with AsyncExitStack() as stack:
        target = await _listening(stack, context)
        await line.say(line.listed(await line.appraised(node), target))
        assert line.why_none() == "PEER_UNREACHABLE"


async def test_a_way_that_leads_to_the_node_itself_is_not_the_endpoint_of_its_session(line: LyingList) -> None:
    node = await line.node()
    lease = await line.appraised(node)
    async with wire(node.endpoint) as relayed:
        await line.say(line.listed(lease, relayed.address, line.seal(lease, node.endpoint)))
        assert line.why_none() == "SESSION_NOT_CONFIRMED"
        # With a session for that way the registry has laid a longer wire: the key at its end is still the node's.
        await line.say(line.listed(lease, relayed.address))
        assert line.choose().lease.certificate.spki_sha256 == lease.certificate.spki_sha256


async def test_nobody_at_the_endpoint_is_nobody_used(line: LyingList) -> None:
    node = await line.node()
    await line.say(line.listed(await line.appraised(node), "127.0.0.1:9"))
    assert line.why_none() == "PEER_UNREACHABLE"


async def test_the_session_of_another_node_is_not_cited(line: LyingList) -> None:
    node, other = await line.node(), await line.node()
    session = line.seal(await line.appraised(other), node.endpoint)
    await line.say(line.listed(await line.appraised(node), node.endpoint, session))
    assert line.why_none() == "SESSION_NOT_CONFIRMED"


@pytest.mark.parametrize(
    "changes",
    [
        {"upstream_name": "spiffe://mesh.test/node/another"},
        {"expires_at": int(time.time()) + 10**6, "established_at": int(time.time()) + 10**5},
        {"identity": {"provider": "somebody"}},
        {"channel_binding": []},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_session_that_was_edited_is_not_cited(line: LyingList, changes: dict[str, Any]) -> None:
    node = await line.node()
    lease = await line.appraised(node)
    await line.say(line.listed(lease, node.endpoint, line.seal(lease, node.endpoint, **changes)))
    assert line.why_none() == "SESSION_NOT_CONFIRMED"


async def test_a_session_that_was_edited_under_its_old_id_is_not_cited(line: LyingList) -> None:
    node = await line.node()
    lease = await line.appraised(node)
    listed = line.listed(lease, node.endpoint)
    edited = line.seal(lease, node.endpoint, upstream_name="spiffe://mesh.test/node/another")
    line.registry.sessions[listed.session_id] = line.registry.sessions[edited]
    await line.say(listed)
    assert line.why_none() == "SESSION_ID_MISMATCH"
    with pytest.raises(SessionIdMismatch):  # Nor is it given to clients who ask for that id.
        await line.upstreams.session(listed.session_id.hex())


@pytest.mark.parametrize(
    ("document", "reason"), [(b"\xff" * 100, "JSON_MALFORMED"), (None, "SESSION_UNKNOWN")], ids=["garbage", "nothing"]
)
async def test_what_is_no_session_is_not_cited(line: LyingList, document: bytes | None, reason: str) -> None:
    node = await line.node()
    listed = await line.honestly(node)
    del line.registry.sessions[listed.session_id]
    if document is not None:
        line.registry.sessions[listed.session_id] = document
    await line.say(listed)
    assert line.why_none() == reason


async def test_a_lease_that_ran_out_is_not_used(line: LyingList) -> None:
    node = await line.node()
    listed = await line.honestly(node)
    listed.lease_until_ms = int(time.time() * 1000) - 1
    await line.say(listed)
    with pytest.raises(UpstreamVerificationFailed):
        line.choose()


async def test_a_lease_is_no_longer_than_the_routers_own_appraisal_gives(line: LyingList) -> None:
    node = await line.node()
    listed = await line.honestly(node)
    listed.lease_until_ms = 2**53
    await line.say(listed)
    chosen = line.choose()
    assert chosen.candidate.lease_until_ms <= chosen.lease.until * 1000


async def test_a_lease_is_no_longer_than_the_session_that_receipts_would_cite(line: LyingList) -> None:
    node = await line.node()
    lease = await line.appraised(node)
    ends = int(time.time()) + 60
    await line.say(line.listed(lease, node.endpoint, line.seal(lease, node.endpoint, expires_at=ends)))
    assert line.choose().candidate.lease_until_ms == ends * 1000 < lease.until * 1000


async def test_a_node_that_is_gone_is_not_used_though_it_is_listed_again(line: LyingList) -> None:
    node = await line.node()
    listed = await line.honestly(node)
    await line.say(listed)
    await line.tell(registry_pb2.WatchResponse(ended=node.spiffe_id))
    assert line.why_none() is None
    await line.stop_nodes()
    await line.say(listed)
    assert line.why_none() in ("PEER_UNREACHABLE", "PEER_UNAVAILABLE")


async def test_endless_nodes_that_are_none_take_no_more_than_so_much_and_harm_nobody(line: LyingList) -> None:
    node = await line.node()
    honest = await line.honestly(node)
    for wave in range(20):
        none = (registry_pb2.Provider(spiffe_id=f"{wave}-{n}", endpoint=f"{wave}-{n}") for n in range(MAX_LISTED + 50))
        await line.say(honest, *none)
        assert line.choose().candidate.spiffe_id == node.spiffe_id
    assert len(line.upstreams._known) == MAX_LISTED
    assert len(line.router._peers) < 5 * MAX_LISTED


async def test_events_without_sense_change_nothing(line: LyingList) -> None:
    node = await line.node()
    await line.say(await line.honestly(node))
    await line.tell(
        registry_pb2.WatchResponse(),
        registry_pb2.WatchResponse(ended=""),
        registry_pb2.WatchResponse(ended="x" * 100_000),
        registry_pb2.WatchResponse(changed=registry_pb2.Provider()),
        registry_pb2.WatchResponse(changed=registry_pb2.Provider(endpoint="\0" * 1000, session_id=b"\xff" * 1000)),
    )
    await line.upstreams.verify()
    assert {line.choose().candidate.spiffe_id for _ in range(8)} == {node.spiffe_id}


async def _listening(stack: AsyncExitStack, context: ssl.SSLContext) -> str:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    stack.callback(server.close)
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
