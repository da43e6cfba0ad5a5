"""Which nodes may be used: only what this router verified itself, whatever the registry says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from teemesh.registry.v1 import registry_pb2

from libs import jcs
from libs.aci.endpoints import CHAT, COMPLETIONS, DEFINED, MESSAGES
from libs.aci.session import Session, abbreviated, session_id, verify_session
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.policy.constraints import Constraints as Demanded
from libs.policy.constraints import TenantConstraints
from services.registry.sessions import draft_session
from services.router.errors import EndpointNotOffered, UpstreamVerificationFailed
from services.router.prompt import Constraints
from services.router.routing.confirmation import SessionNotOurs, confirm
from services.router.routing.listed import Upstream
from services.router.routing.upstreams import Upstreams
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.leases import CLAIMS, MODEL, UNKNOWN, WEIGHTS, node_lease
from tests.fakes.ledgers import TENANT
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, prompt

ENDPOINT = "127.0.0.1:4000"


def choose(bench: RouterBench) -> Upstream:
    return bench.upstreams.choose(MODEL, CHAT, Constraints(), TENANT.tenant_id, frozenset())


def why_none(bench: RouterBench) -> str | None:
    with pytest.raises(UpstreamVerificationFailed) as refused:
        choose(bench)
    return refused.value.why


def altered(document: bytes, changes: Mapping[str, Any]) -> Session:
    """A session with other members; a dotted name reaches into an object."""
    value = jcs.loads_object(document)
    for name, member in changes.items():
        holder: Any = value
        *path, last = name.split(".")
        for step in path:
            holder = holder[step]
        holder[last] = member
    data = jcs.dumps(value)
    return verify_session(data, session_id(data))


LEASE = node_lease(life_seconds=3600.0)
DOCUMENT = draft_session(LEASE, ENDPOINT).document


def test_a_session_that_says_what_was_found_is_confirmed() -> None:
    confirm(altered(DOCUMENT, {}), ENDPOINT, LEASE, time.time())
    confirm(altered(DOCUMENT, {"claims.extra.policy_version": 9}), ENDPOINT, LEASE, time.time())


@pytest.mark.parametrize(
    "changes",
    [
        {"claims.tcb_up_to_date": {"status": "unknown"}},
        {"claims.gpu_attested": {"status": "asserted", "source": "hardware_proven", "reason": "really"}},
        {"claims.extra.tcb_status": "OutOfDate"},
        {"claims.extra.compose_hash": "ff" * 32},
        {"claims.extra.gpu": "yes"},
        {"claims.extra.policy_version": "1"},
        {"claims.extra.policy_version": 0},
        {"claims.extra.policy_version": True},
        {"upstream_name": "spiffe://mesh.test/node/other"},
        {"endpoint": "https://127.0.0.1:4001"},
        {"identity": {"provider": "somebody"}},
        {"channel_binding": []},
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_a_session_that_says_something_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SessionNotOurs) as refused:
        confirm(altered(DOCUMENT, changes), ENDPOINT, LEASE, time.time())
    assert refused.value.reason == "SESSION_NOT_CONFIRMED"


@pytest.mark.parametrize("seconds", [(-7200, 0), (60, 7200)], ids=["has ended", "has not begun"])
def test_a_session_that_is_not_valid_now_is_refused(seconds: tuple[int, int]) -> None:
    now = int(time.time())
    established_at, expires_at = (now + second for second in seconds)
    session = altered(DOCUMENT, {"established_at": established_at, "expires_at": expires_at})
    with pytest.raises(SessionNotOurs, match="not valid now") as refused:
        confirm(session, ENDPOINT, LEASE, now)
    assert refused.value.reason == "SESSION_NOT_CONFIRMED"


@pytest.mark.parametrize("other", [node_lease(key="second"), node_lease("two")], ids=["another key", "another node"])
def test_another_nodes_session_is_refused(other: Any) -> None:
    with pytest.raises(SessionNotOurs):
        confirm(altered(draft_session(other, ENDPOINT).document, {}), ENDPOINT, LEASE, time.time())


async def test_a_node_whose_session_claims_more_than_was_found_is_not_used(bench: RouterBench) -> None:
    node = bench.nodes[0]
    better = replace(node.lease.appraisal.claims, gpu_attested=CLAIMS.tee_attested, tcb_up_to_date=UNKNOWN)
    lie = replace(node.lease, appraisal=replace(node.lease.appraisal, claims=better))
    lied = bench.publish_session(lie, node.target)
    # While it is in use: the admission does not outlive the session that it rests on.
    bench.upstreams.take(bench.snapshot(node.provider(session_id=lied)))
    assert bench.upstreams.current_sessions(None, None) == []
    await bench.upstreams.verify()
    assert why_none(bench) == "SESSION_NOT_CONFIRMED"
    bench.upstreams.take(bench.snapshot(node.provider()))
    await bench.upstreams.verify()
    assert choose(bench).candidate.spiffe_id == node.lease.certificate.spiffe_id


async def test_a_document_that_is_not_the_session_named_is_refused(bench: RouterBench) -> None:
    node = bench.nodes[0]
    bench.registry.sessions[b"\x07" * 32] = DOCUMENT
    bench.upstreams.take(bench.snapshot(node.provider(session_id=b"\x07" * 32)))
    await bench.upstreams.verify()
    assert why_none(bench) == "SESSION_ID_MISMATCH"


@pytest.mark.parametrize("endpoint", ["nowhere", "node:99999", "node:0", "https://node:1", "node:1/x", "user@node:1"])
async def test_an_endpoint_that_is_none_is_refused_and_harms_nobody_else(two_nodes: RouterBench, endpoint: str) -> None:
    bench = two_nodes
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(endpoint), bench.nodes[1].provider()))
    await bench.upstreams.verify()
    assert choose(bench).candidate.spiffe_id == bench.nodes[1].lease.certificate.spiffe_id
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(endpoint)))
    assert why_none(bench) == "ENDPOINT_MALFORMED"


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "a\0b"])
async def test_a_node_at_a_host_that_cannot_be_ends_no_task(
    mesh: JoinedMesh, kms: KmsCore, bench: RouterBench, host: str
) -> None:
    async with mesh.member("router", kms) as router:
        upstreams = Upstreams(router, router.peer("registry", "127.0.0.1:1"))
        upstreams.take(bench.snapshot(bench.nodes[0].provider(f"{host}:443")))
        await upstreams.verify()
        assert upstreams._why_none(MODEL) == "PEER_UNREACHABLE"


async def test_load_and_drain_are_the_registrys_word_and_need_no_new_verification(two_nodes: RouterBench) -> None:
    bench = two_nodes
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(draining=True), bench.nodes[1].provider()))
    assert {choose(bench).candidate.spiffe_id for _ in range(8)} == {bench.nodes[1].lease.certificate.spiffe_id}


async def test_a_node_that_moves_is_verified_where_it_is_now(bench: RouterBench) -> None:
    node = bench.nodes[0]
    bench.publish_session(node.lease, ENDPOINT)
    bench.upstreams.take(bench.snapshot(node.provider(ENDPOINT)))
    await bench.upstreams.verify()
    assert why_none(bench) == "PEER_UNAVAILABLE"


async def test_a_node_that_lost_its_connection_is_not_used(bench: RouterBench) -> None:
    bench.peer_of(bench.nodes[0]).known = None
    assert why_none(bench) is not None
    assert bench.upstreams.weights(TENANT.tenant_id) == {}


async def test_a_node_that_the_registry_ended_is_not_used(bench: RouterBench) -> None:
    bench.upstreams.take(registry_pb2.WatchResponse(ended=bench.nodes[0].lease.certificate.spiffe_id))
    with pytest.raises(UpstreamVerificationFailed):
        choose(bench)


async def test_what_a_refused_peer_said_is_told_after_the_registry_dropped_the_node(bench: RouterBench) -> None:
    bench.peer_of(bench.nodes[0]).refusal = "MEASUREMENT_NOT_ALLOWED"
    bench.upstreams.take(bench.snapshot())
    assert why_none(bench) == "MEASUREMENT_NOT_ALLOWED"


async def test_a_lease_that_ran_out_is_not_used_though_the_registry_is_away(bench: RouterBench) -> None:
    node = bench.nodes[0]
    ended = node.provider()
    ended.lease_until_ms = 1
    bench.upstreams.take(bench.snapshot(ended))
    with pytest.raises(UpstreamVerificationFailed):
        choose(bench)
    assert bench.upstreams.current_sessions(None, None) == []
    assert bench.upstreams.weights(TENANT.tenant_id) == {}


async def test_sessions_are_listed_by_upstream_and_by_model(two_nodes: RouterBench) -> None:
    upstreams = two_nodes.upstreams
    assert len(upstreams.current_sessions(None, None)) == 2
    name = two_nodes.nodes[0].lease.certificate.spiffe_id
    (only,) = upstreams.current_sessions(name, MODEL)
    assert jcs.loads_object(only.document)["upstream_name"] == name
    assert upstreams.current_sessions(None, "other") == []


async def test_how_a_session_is_listed_is_made_once(bench: RouterBench) -> None:
    """Anybody may ask for the list, and a session has 50 KB of evidence."""
    (first,) = bench.upstreams.current_sessions(None, None)
    assert json.loads(first.entry) == abbreviated(first.document)
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(load=registry_pb2.Load(capacity=7))))
    (again,) = bench.upstreams.current_sessions(None, None)
    assert again is first


class Noting(Upstreams):
    """Tells when it has taken the registry's word."""

    def __init__(self, bench: RouterBench) -> None:
        super().__init__(cast(Member, bench.member), cast(Peer, bench.registry_peer))
        self.taken = asyncio.Event()

    def take(self, event: registry_pb2.WatchResponse) -> None:
        super().take(event)
        self.taken.set()


async def test_the_registrys_watch_is_followed(bench: RouterBench) -> None:
    upstreams = Noting(bench)
    following = asyncio.create_task(upstreams.follow())
    bench.registry.events.put_nowait(bench.snapshot(bench.nodes[0].provider()))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await upstreams.taken.wait()
        await upstreams.verify()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert upstreams.weights(TENANT.tenant_id) == {MODEL: WEIGHTS}


async def test_a_node_that_renews_is_used_all_along(bench: RouterBench) -> None:
    """First under the old key on the old link, then under the new one as soon as its session is confirmed."""
    node, peer = bench.nodes[0], bench.peer_of(bench.nodes[0])
    before = choose(bench)
    claimed = before.lease.appraisal.workload_claims
    node.lease = node_lease(node.lease.certificate.instance, key="second", more_claims=claimed)
    peer.keeps_old_links, peer.renewed = True, node.lease
    await bench.upstreams.verify()
    assert choose(bench) is before  # The registry has no session for the new key yet.
    bench.upstreams.take(bench.snapshot(node.provider()))
    assert choose(bench).link is before.link
    assert (await bench.run(prompt())).started.status == 200
    await bench.upstreams.verify()
    assert choose(bench).lease is before.lease  # Nor does the registry's word make a key believed.
    bench.publish_session(node.lease, node.target)
    await bench.upstreams.verify()
    assert choose(bench).lease is node.lease
    assert (await bench.run(prompt())).started.status == 200


async def test_a_session_that_is_replaced_under_the_same_key_is_not_used_on(bench: RouterBench) -> None:
    """Only a renewal has a new key; anything else is to be verified before it is used."""
    bench.peer_of(bench.nodes[0]).keeps_old_links = True
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(session_id=b"\x01" * 32)))
    assert why_none(bench) is not None


@dataclass(frozen=True, slots=True)
class _Gpus:
    """A verdict on GPUs, of which a candidate says only that there is one."""


async def test_a_candidate_is_what_its_lease_says_and_not_what_the_registry_does(bench: RouterBench) -> None:
    node = bench.nodes[0]
    assert not choose(bench).candidate.has_gpu
    assert choose(bench).candidate.region is None
    lease = node_lease("n0", key="second", more_claims={"region": "eu-1"})
    node.lease = replace(lease, appraisal=replace(lease.appraisal, gpu=cast(Any, _Gpus()), tee_type="sev-snp"))
    bench.peer_of(node).known = node.lease
    bench.publish_session(node.lease, node.target)
    bench.upstreams.take(bench.snapshot(node.provider()))
    await bench.upstreams.verify()
    candidate = choose(bench).candidate
    assert (candidate.region, candidate.tee_type, candidate.has_gpu) == ("eu-1", "sev-snp", True)
    assert candidate.evidence_time_ms == lease.evidence.challenge.issued_at * 1000


async def test_models_are_listed_as_far_as_the_tenant_may_use_them(bench: RouterBench) -> None:
    assert bench.upstreams.weights(TENANT.tenant_id) == {MODEL: WEIGHTS}
    none: Mapping[str, frozenset[str]] = {}
    bench.member.policy.constraints = Demanded(by_tenant={TENANT.tenant_id: TenantConstraints(models=none)})
    assert bench.upstreams.weights(TENANT.tenant_id) == {}
    assert bench.upstreams.weights("ee" * 16) == {MODEL: WEIGHTS}


async def test_what_is_chosen_is_what_the_selection_would_return(two_nodes: RouterBench) -> None:
    """Whichever is less loaded, drained, tried or in use; and refused with the selection's own words."""
    bench, (one, two) = two_nodes, two_nodes.nodes
    names = {twin: twin.lease.certificate.spiffe_id for twin in (one, two)}
    busy = registry_pb2.Load(running_requests=3, capacity=4)
    bench.upstreams.take(bench.snapshot(one.provider(load=busy), two.provider()))
    idle = choose(bench)
    assert idle.candidate.spiffe_id == names[two]
    with ExitStack() as requests:
        for _ in range(4):
            requests.enter_context(bench.upstreams.using(idle))
        assert choose(bench).candidate.spiffe_id == names[one]
    assert choose(bench).candidate.spiffe_id == names[two]
    chosen = bench.upstreams.choose(MODEL, CHAT, Constraints(), TENANT.tenant_id, frozenset({names[two]}))
    assert chosen.candidate.spiffe_id == names[one]
    bench.upstreams.take(registry_pb2.WatchResponse(ended=names[two]))
    assert choose(bench).candidate.spiffe_id == names[one]
    bench.peer_of(one).known = None
    with pytest.raises(UpstreamVerificationFailed):
        choose(bench)


async def test_where_a_node_is_asked_is_what_its_evidence_claims(bench: RouterBench) -> None:
    """The registry has no part in it: whatever it says of a node, its prompts go where its measured code says."""
    node = bench.nodes[0]
    assert choose(bench).candidate.endpoints == set(DEFINED)
    old = node_lease("one", key="older", more_claims={"receipt_key": "00" * 32})
    node.lease = old
    bench.peer_of(node).known = old
    bench.publish_session(old, node.target)
    bench.upstreams.take(bench.snapshot(node.provider()))
    await bench.upstreams.verify()
    assert choose(bench).candidate.endpoints == {CHAT, COMPLETIONS}
    with pytest.raises(EndpointNotOffered):
        bench.upstreams.choose(MODEL, MESSAGES, Constraints(), TENANT.tenant_id, frozenset())
    assert bench.upstreams.endpoints(TENANT.tenant_id) == {MODEL: {CHAT, COMPLETIONS}}
