"""What changes after a provider was verified, or chosen, counts before the next prompt goes there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.aci.endpoints import CHAT
from libs.aci.receipt_events import UpstreamFailed
from libs.aci.session import session_id
from libs.policy.constraints import Constraints, TenantConstraints
from libs.policy.document import Policy
from libs.policy.revoked import Revoked
from services.router.prompt import Constraints as Demanded
from services.router.prompt import parse
from services.router.routing.foreign.access import Credentials
from services.router.routing.foreign.adapter import ForeignNotVerified
from services.router.routing.hop import Errand
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import (
    HERE,
    MachineCollateral,
    OtherRouter,
    asked,
    assert_refused,
    error_type,
    first_router,
    last_receipt,
    listing,
    made,
    other_router,
    policy_listing,
)
from tests.fakes.ledgers import TENANT
from tests.fakes.policies import KeeperTwin
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, router_bench
from tests.fakes.vllm_proxy_worker import API_KEY, WorkerTwin, vllm_proxy_worker


@dataclass(slots=True)
class Downgrade:
    """A router that verified a worker, and what answers in the worker's place now: its TLS ends somewhere else."""

    router: RouterBench
    worker: WorkerTwin


@asynccontextmanager
async def downgraded(folder: Path, tenants: list[str]) -> AsyncIterator[Downgrade]:
    """Policy takes a worker whose channel nobody can bind, for these tenants; the one that was verified had one."""
    worker = WorkerTwin(AttestedMesh.create(int(time.time())))
    async with AsyncExitStack() as before, AsyncExitStack() as routers:
        await before.enter_async_context(vllm_proxy_worker(worker, made(folder / "before")))
        provider = {
            "name": "worker",
            "kind": "dstack-vllm-proxy",
            "origin": worker.origin,
            "models": {HERE: "there/model"},
            "measurements": [worker.mesh.workloads["router"].measurement.to_json()],
            "best_effort": True,
            "tenants": tenants,
        }
        policy = policy_listing(worker.mesh, [provider], constraints={"default": {"verified_only": False}})
        bench = router_bench(
            made(folder / "router"),
            nodes=0,
            policy=KeeperTwin(policy),
            credentials={"worker": Credentials(API_KEY, worker.mesh.ca.pem)},
            collateral=MachineCollateral(worker.mesh),
        )
        router = await routers.enter_async_context(bench)
        await router.foreign.verify()
        assert (await router.run(asked())).started.status == 200
        await before.aclose()
        worker.bodies.clear()
        worker.tls_key, worker.has_tls_key = ec.generate_private_key(ec.SECP256R1()), False
        async with vllm_proxy_worker(worker, made(folder / "after")):
            yield Downgrade(router, worker)


@pytest.mark.parametrize(
    ("tenants", "provider"),
    [([TENANT.tenant_id], {"aci_verified": True}), ([], {})],
    ids=["a request that demands verification", "a tenant whom policy does not name"],
)
async def test_a_worker_that_is_verified_anew_as_less_gets_only_what_that_may_serve(
    tmp_path: Path, tenants: list[str], provider: dict[str, Any]
) -> None:
    async with downgraded(tmp_path, tenants) as meanwhile:
        answer = await meanwhile.router.run(asked(provider=provider))
        assert_refused(meanwhile.router, answer, "VERIFIED_OTHERWISE", required=bool(provider))
        assert meanwhile.worker.asked == ["2", "2", "1"]
        assert meanwhile.worker.bodies == []


async def test_a_worker_that_is_verified_anew_as_less_still_serves_whom_policy_names(tmp_path: Path) -> None:
    async with downgraded(tmp_path, [TENANT.tenant_id]) as meanwhile:
        assert (await meanwhile.router.run(asked())).started.status == 200
        assert len(meanwhile.worker.bodies) == 1


async def test_a_request_that_pins_a_session_is_not_served_by_the_one_after(tmp_path: Path) -> None:
    mesh = AttestedMesh.create(int(time.time()))
    async with AsyncExitStack() as before, AsyncExitStack() as routers:
        other = await before.enter_async_context(other_router(tmp_path / "before", mesh))
        router = await routers.enter_async_context(first_router(tmp_path / "first", mesh, listing(mesh, other.origin)))
        (pinned,) = router.foreign.current_sessions(None, None)
        await before.aclose()
        async with other_router(tmp_path / "after", mesh, port=other.port) as after:
            answer = await router.run(asked(provider={"aci_session_ids": [session_id(pinned.document)]}))
            assert (answer.started.status, error_type(answer)) == (412, "session_not_accepted")
            assert last_receipt(router).upstream == UpstreamFailed(True, HERE, "session_not_accepted")
            assert after.bodies == []
            assert (await router.run(asked())).started.status == 200


async def test_revoked_code_gets_no_prompt_before_anybody_looks(router: RouterBench, other: OtherRouter) -> None:
    revoke_code(router, other)
    assert_refused(router, await router.run(asked()), "MEASUREMENT_REVOKED")
    assert other.bodies == []


async def test_what_policy_takes_away_after_the_choice_gets_no_prompt(router: RouterBench, other: OtherRouter) -> None:
    route = router.foreign.choose(HERE, CHAT, Demanded(), TENANT.tenant_id, frozenset())
    assert route is not None
    policy: Policy = router.member.policy.current
    router.member.policy.enact(replace(policy, foreign_providers=()))
    steps = route.forward(
        Errand(parse(asked(), CHAT), CHAT, "req_1", TENANT.tenant_id, PATIENCE_SECONDS, required=True)
    )
    with pytest.raises(ForeignNotVerified, match="NOT_LISTED"):
        await anext(steps)
    assert other.bodies == []


async def test_what_policy_demands_for_the_tenant_after_the_choice_counts(
    router: RouterBench, other: OtherRouter
) -> None:
    route = router.foreign.choose(HERE, CHAT, Demanded(), TENANT.tenant_id, frozenset())
    assert route is not None
    policy: Policy = router.member.policy.current
    demand = Constraints(by_tenant={TENANT.tenant_id: TenantConstraints(gpu_required=True)})
    router.member.policy.enact(replace(policy, constraints=demand))
    steps = route.forward(
        Errand(parse(asked(), CHAT), CHAT, "req_1", TENANT.tenant_id, PATIENCE_SECONDS, required=True)
    )
    with pytest.raises(ForeignNotVerified, match="VERIFIED_OTHERWISE"):
        await anext(steps)
    assert other.bodies == []
    answer = await router.run(asked())
    assert (answer.started.status, error_type(answer)) == (503, "tenant_constraints_unmet")


async def test_a_shorter_age_of_evidence_holds_for_what_was_verified_before(
    router: RouterBench, other: OtherRouter
) -> None:
    """The provider refuses to be verified again, so all there is is too old."""
    other.lies["attestation"] = lambda report: b"{}"
    policy: Policy = router.member.policy.current
    router.member.policy.enact(replace(policy, evidence_max_age_seconds=0))
    await router.foreign.verify()
    assert router.foreign.current_sessions(None, None) == []
    answer = await router.run(asked())
    assert (answer.started.status, error_type(answer)) == (503, "upstream_verification_failed")
    assert last_receipt(router).forwarded is None
    assert other.bodies == []


def revoke_code(router: RouterBench, other: OtherRouter) -> None:
    measured = other.mesh.workloads["router"].measurement.compose_hash
    policy: Policy = router.member.policy.current
    router.member.policy.enact(replace(policy, revoked=Revoked(compose_hashes=frozenset({measured}))))
