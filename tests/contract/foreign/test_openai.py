"""A service of which nothing is verified: only those are sent there whom policy names, and their receipts say it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from libs.aci.receipt import Receipt, verify_receipt
from libs.aci.receipt_events import Aborted, UpstreamFailed
from libs.transparency.leaf import Kind
from services.router.routing.foreign.access import Credentials
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import policy_listing
from tests.fakes.ledgers import TENANT
from tests.fakes.openai_service import OpenAiTwin, openai_service
from tests.fakes.pki import ThrowawayCa
from tests.fakes.policies import KeeperTwin
from tests.fakes.routers import Answer, RouterBench, prompt, router_bench

HERE, THERE = "frontier", "gpt-there"


@pytest.fixture
async def service() -> AsyncIterator[OpenAiTwin]:
    async with openai_service() as running:
        yield running


def listed(service: OpenAiTwin, tenants: list[str], *, verified_only: bool = False) -> KeeperTwin:
    provider = {
        "name": "commercial",
        "kind": "openai",
        "origin": service.origin,
        "models": {HERE: THERE},
        "best_effort": True,
        "tenants": tenants,
    }
    mesh = AttestedMesh.create(int(time.time()))
    return KeeperTwin(policy_listing(mesh, [provider], constraints={"default": {"verified_only": verified_only}}))


async def ask(
    folder: Path,
    service: OpenAiTwin,
    *,
    tenants: list[str],
    ca_pem: bytes | None = None,
    verified_only: bool = False,
    endpoint: Endpoint = CHAT,
    **members: Any,
) -> tuple[Answer, Receipt]:
    credentials = {"commercial": Credentials("sk-ours", ca_pem or service.ca.pem)}
    policy = listed(service, tenants, verified_only=verified_only)
    async with router_bench(folder, nodes=0, policy=policy, credentials=credentials) as router:
        await router.foreign.verify()
        answer = await router.run(prompt(model=HERE, **members), endpoint=endpoint)
        assert router.foreign.current_sessions(None, None) == []
        assert router.foreign.models(TENANT.tenant_id) == {}
        return answer, _receipt(router)


def _receipt(router: RouterBench) -> Receipt:
    assert router.ledger.of(Kind.SESSION) == []
    return verify_receipt(jcs.dumps(dict(router.ledger.of(Kind.RECEIPT)[-1])), router.workload.keyset)


def error_type(answer: Answer) -> str:
    value: str = json.loads(answer.body)["error"]["type"]
    return value


async def test_a_named_tenants_prompt_is_served_and_its_receipt_says_unverified(
    tmp_path: Path, service: OpenAiTwin
) -> None:
    answer, receipt = await ask(tmp_path, service, tenants=[TENANT.tenant_id], temperature=0)
    assert (answer.started.status, answer.body) == (200, b"".join(service.pieces))
    (body,) = service.bodies
    assert json.loads(body) == json.loads(prompt(model=THERE, temperature=0))
    assert receipt.upstream == UpstreamFailed(False, THERE, "never_verified", "foreign/commercial")
    assert receipt.forwarded is not None
    assert receipt.forwarded.body_hash == digest(body)
    assert receipt.returned.body_hash == digest(answer.body)


async def test_the_service_sees_the_routers_key_and_no_other(tmp_path: Path, service: OpenAiTwin) -> None:
    await ask(tmp_path, service, tenants=[TENANT.tenant_id])
    assert service.keys == ["Bearer sk-ours"]


@pytest.mark.parametrize("tenants", [[], ["cd" * 16]], ids=["nobody", "others"])
async def test_a_tenant_whom_policy_does_not_name_is_not_sent_there(
    tmp_path: Path, service: OpenAiTwin, tenants: list[str]
) -> None:
    answer, receipt = await ask(tmp_path, service, tenants=tenants)
    assert (answer.started.status, error_type(answer)) == (404, "not_found_error")
    assert receipt.forwarded is None
    assert service.bodies == []


async def test_a_tenant_whose_constraints_say_verified_only_is_not_sent_there(
    tmp_path: Path, service: OpenAiTwin
) -> None:
    answer, receipt = await ask(tmp_path, service, tenants=[TENANT.tenant_id], verified_only=True)
    assert (answer.started.status, error_type(answer)) == (503, "upstream_verification_failed")
    assert isinstance(receipt.upstream, UpstreamFailed)
    assert "SERVES_UNVERIFIED" in receipt.upstream.reason
    assert service.bodies == []


@pytest.mark.parametrize("tenants", [[TENANT.tenant_id], []], ids=["named", "not named"])
@pytest.mark.parametrize(
    ("provider", "refusal"),
    [
        ({"aci_verified": True}, (503, "upstream_verification_failed")),
        ({"aci_session_ids": ["00" * 32]}, (412, "session_not_accepted")),
    ],
    ids=["verified", "pinned"],
)
async def test_a_request_that_demands_verification_is_refused_and_not_sent_there(
    tmp_path: Path, service: OpenAiTwin, provider: dict[str, Any], refusal: tuple[int, str], tenants: list[str]
) -> None:
    answer, receipt = await ask(tmp_path, service, tenants=tenants, provider=provider)
    assert (answer.started.status, error_type(answer)) == refusal
    assert receipt.forwarded is None
    assert service.bodies == []


async def test_a_host_whose_name_nobody_vouches_for_gets_nothing(tmp_path: Path, service: OpenAiTwin) -> None:
    answer, receipt = await ask(tmp_path, service, tenants=[TENANT.tenant_id], ca_pem=ThrowawayCa().pem)
    assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    assert receipt.forwarded is None
    assert service.bodies == []


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_what_the_service_holds_against_the_router_is_not_told_as_the_clients_fault(
    tmp_path: Path, service: OpenAiTwin, status: int
) -> None:
    service.status = status
    service.pieces = (b'{"error":{"message":"sk-ours is wrong","type":"invalid_key"}}',)
    answer, receipt = await ask(tmp_path, service, tenants=[TENANT.tenant_id])
    assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    assert b"sk-ours" not in answer.body
    assert Aborted("upstream_failed") in receipt.events


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_service_that_points_elsewhere_sends_no_prompt_there(
    tmp_path: Path, service: OpenAiTwin, status: int
) -> None:
    """Policy lists where prompts go, and a provider's word is no policy."""
    async with openai_service() as elsewhere:
        service.status, service.location = status, f"{elsewhere.origin}/v1/chat/completions"
        answer, receipt = await ask(
            tmp_path, service, tenants=[TENANT.tenant_id], ca_pem=service.ca.pem + elsewhere.ca.pem
        )
        assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
        assert Aborted("upstream_failed") in receipt.events
        assert (len(service.paths), elsewhere.paths) == (1, [])


async def test_a_refusal_of_any_length_is_the_services_failure(tmp_path: Path, service: OpenAiTwin) -> None:
    service.status, service.pieces = 500, (b"x" * (1 << 17),)
    answer, receipt = await ask(tmp_path, service, tenants=[TENANT.tenant_id])
    assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    assert Aborted("upstream_failed") in receipt.events


async def test_what_the_client_could_mend_is_passed_on(tmp_path: Path, service: OpenAiTwin) -> None:
    service.status, service.pieces = 400, (b'{"error":{"message":"too long"}}',)
    answer, _ = await ask(tmp_path, service, tenants=[TENANT.tenant_id])
    assert (answer.started.status, answer.body) == (400, b'{"error":{"message":"too long"}}')


async def test_a_service_that_breaks_off_does_not_look_complete(tmp_path: Path, service: OpenAiTwin) -> None:
    service.breaks = True
    answer, receipt = await ask(tmp_path, service, tenants=[TENANT.tenant_id])
    assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    assert Aborted("upstream_failed") in receipt.events


@pytest.mark.parametrize("endpoint", [EMBEDDINGS, RESPONSES], ids=lambda endpoint: endpoint.path)
async def test_it_is_asked_where_openai_answers_and_told_to_keep_nothing(
    tmp_path: Path, service: OpenAiTwin, endpoint: Endpoint
) -> None:
    service.pieces = (b'{"id":"resp_1"}',)
    answer, receipt = await ask(tmp_path, service, tenants=[TENANT.tenant_id], endpoint=endpoint, input="a")
    assert (answer.started.status, service.paths) == (200, [endpoint.path])
    assert json.loads(service.bodies[0]).get("store") is (False if endpoint is RESPONSES else None)
    assert receipt.forwarded is not None
    assert receipt.forwarded.body_hash == digest(service.bodies[0])


async def test_it_is_not_asked_where_it_does_not(tmp_path: Path, service: OpenAiTwin) -> None:
    answer, _ = await ask(tmp_path, service, tenants=[TENANT.tenant_id], endpoint=MESSAGES)
    assert answer.started.status == 404
    assert service.bodies == []
