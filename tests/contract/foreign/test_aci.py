"""A router whose policy lists another mesh's router: verified before a prompt goes there, its proofs after."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT
from libs.aci.receipt_events import (
    Aborted,
    ServedByForeign,
    UpstreamVerified,
)
from libs.aci.report import report_data
from libs.aci.session import TlsBinding, session_id, verify_session
from libs.client.foreign import parse_evidence, verify_answer, verify_service
from libs.policy.constraints import Constraints as TenantsConstraints
from libs.policy.constraints import TenantConstraints
from libs.policy.document import Policy
from libs.policy.revoked import Revoked
from libs.transparency.leaf import Kind
from services.router.prompt import Constraints, parse
from services.router.routing.hop import Errand, Reached
from services.router.workload.settings import DAY_SECONDS
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import (
    HERE,
    NAME,
    THERE,
    WORDS,
    OtherRouter,
    asked,
    assert_refused,
    error_type,
    first_router,
    last_receipt,
    listing,
    other_router,
)
from tests.fakes.https_router import server_context
from tests.fakes.ledgers import TENANT
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.relay import impersonating
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench


async def test_a_prompt_goes_to_the_verified_service_and_its_answer_comes_back(
    router: RouterBench, other: OtherRouter
) -> None:
    answer = await router.run(asked(temperature=0.10))
    assert (answer.started.status, answer.body) == (200, b"".join(BUFFERED))
    (body,) = other.bodies
    sent = json.loads(body)
    (theirs,) = other.bench.upstreams.current_sessions(None, None)
    assert sent["model"] == THERE
    assert sent["provider"] == {"aci_verified": True, "aci_session_ids": [session_id(theirs.document)]}
    assert sent["messages"][0]["content"] == WORDS
    assert b'"temperature":0.1' in body


async def test_a_stream_passes_both_hops_as_the_node_made_it(router: RouterBench, other: OtherRouter) -> None:
    other.bench.nodes[0].stream()
    answer = await router.run(asked(stream=True))
    assert answer.body == b"".join(STREAMED)
    assert len(answer.parts) > 1
    assert isinstance(last_receipt(router).upstream, UpstreamVerified)


async def test_receipts_chain_across_both_hops_offline(router: RouterBench, other: OtherRouter) -> None:
    """From our receipt and what was logged with it alone: no service is asked."""
    await router.run(asked())
    logged = {session_id(jcs.dumps(dict(body))): jcs.dumps(dict(body)) for body in router.ledger.of(Kind.SESSION)}
    policy: Policy = router.member.policy.current
    ours = last_receipt(router)
    assert ours.upstream == UpstreamVerified(True, THERE, ours.upstream.session_id)  # type: ignore[union-attr]
    session = verify_session(logged[ours.upstream.session_id], ours.upstream.session_id)
    receipts.verify_serving(ours, session)
    evidence = parse_evidence(session.evidence)
    established = verify_service(evidence, policy.foreign_providers[0], policy, ours.served_at)
    accepted = {name: verify_session(logged[name], name) for name in evidence.session_ids}
    (link,) = [event for event in ours.events if isinstance(event, ServedByForeign)]
    assert link.receipt is not None
    assert digest(link.receipt.encode()) == "sha256:" + link.receipt_sha256
    assert ours.forwarded is not None
    (body,) = other.bodies
    assert ours.forwarded.body_hash == digest(body)
    theirs = verify_answer(
        link.receipt.encode(),
        established,
        accepted,
        request_body=body,
        response_hash=ours.returned.body_hash,
        sent_at=ours.served_at,
        received_at=ours.served_at,
    )
    assert theirs.received.body_hash == ours.forwarded.body_hash
    assert established.keyset.digest == other.bench.workload.keyset_digest
    assert session.bindings == tuple(
        TlsBinding(other.origin, key.spki_sha256) for key in other.bench.workload.keyset.tls_public_keys
    )


async def test_the_session_is_listed_and_says_what_was_verified(router: RouterBench, other: OtherRouter) -> None:
    (listed,) = router.foreign.current_sessions(f"foreign/{NAME}", HERE)
    session = verify_session(await router.foreign.session(session_id(listed.document)), session_id(listed.document))
    assert (session.upstream_name, session.endpoint) == (f"foreign/{NAME}", other.origin)
    assert (session.claims.tee_attested.status, session.claims.tee_attested.source) == ("asserted", "hardware_proven")
    assert session.claims.gpu_attested.status == "unknown"
    assert session.claims.model_weights_provenance.status == "unknown"
    assert session.identity == {"keyset_digest": other.bench.workload.keyset_digest}
    assert json.loads(listed.entry)["session_id"] == session_id(listed.document)
    assert router.foreign.current_sessions(None, None) == [listed]
    assert router.foreign.current_sessions(None, None)[0] is listed, "what it says is written down once"
    assert router.foreign.current_sessions(None, "another-model") == []
    assert set(router.foreign.models(TENANT.tenant_id)) == {HERE}


async def test_a_client_may_pin_the_session_and_nothing_else_serves_it(router: RouterBench, other: OtherRouter) -> None:
    (listed,) = router.foreign.current_sessions(None, None)
    answer = await router.run(asked(provider={"aci_session_ids": [session_id(listed.document)]}))
    assert answer.started.status == 200
    refused = await router.run(asked(provider={"aci_session_ids": ["00" * 32]}))
    assert (refused.started.status, len(other.bodies)) == (412, 1)


def own_context(folder: Path, other: OtherRouter) -> ssl.SSLContext:
    """A certificate for the service's name that the same authority gave to somebody else."""
    folder.mkdir()
    return server_context(other.mesh, folder, ec.generate_private_key(ec.SECP256R1()))


async def test_a_relay_with_its_own_certificate_reads_no_prompt(tmp_path: Path, other: OtherRouter) -> None:
    context = own_context(tmp_path / "relay", other)
    async with impersonating(f"127.0.0.1:{other.port}", context, other.mesh.ca.pem) as recording:
        policy = listing(other.mesh, f"https://{recording.address}")
        async with first_router(tmp_path / "first", other.mesh, policy) as router:
            assert_refused(router, await router.run(asked()), "TLS_KEY_NOT_ATTESTED")
    assert b"/v1/aci/attestation" in recording.everything
    assert WORDS.encode() not in recording.everything
    assert b"Bearer" not in recording.everything
    assert other.bodies == []


async def test_a_relay_that_takes_the_place_of_a_verified_service_reads_no_prompt(
    tmp_path: Path, other_mesh: AttestedMesh
) -> None:
    async with AsyncExitStack() as before, AsyncExitStack() as routers:
        other = await before.enter_async_context(other_router(tmp_path / "before", other_mesh))
        policy = listing(other_mesh, other.origin)
        router = await routers.enter_async_context(first_router(tmp_path / "first", other_mesh, policy))
        assert (await router.run(asked())).started.status == 200
        await before.aclose()
        async with other_router(tmp_path / "after", other_mesh) as after:
            context = own_context(tmp_path / "relay", after)
            target = f"127.0.0.1:{after.port}"
            async with impersonating(target, context, other_mesh.ca.pem, port=other.port) as recording:
                assert_refused(router, await router.run(asked()), "TLS_KEY_NOT_ATTESTED")
            assert after.reports == 1
            assert after.bodies == []
    assert WORDS.encode() not in recording.everything
    assert b"Bearer" not in recording.everything


def _edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def lie(document: bytes) -> bytes:
        value = json.loads(document)
        change(value)
        return jcs.dumps(value)

    return lie


def _other_keyset(mesh: AttestedMesh) -> Callable[[bytes], bytes]:
    """A keyset of the attacker's, with every digest made to fit; only the quote cannot be."""

    def lie(document: bytes) -> bytes:
        value = json.loads(document)
        nonce = "00" * 32
        forged = json.loads(mesh.report(nonce))
        value["workload_keyset_digest"] = forged["workload_keyset_digest"]
        value["attestation"]["workload_keyset"] = forged["attestation"]["workload_keyset"]
        return jcs.dumps(value)

    return lie


@pytest.mark.parametrize(
    ("route", "lie", "reason"),
    [
        (
            "attestation",
            lambda mesh: _edited(lambda report: report["attestation"]["workload_keyset"].update(subject="other")),
            "KEYSET_DIGEST_MISMATCH",
        ),
        ("attestation", _other_keyset, "REPORT_DATA_MISMATCH"),
        ("attestation", lambda mesh: lambda report: mesh.report("11" * 32), "REPORT_DATA_MISMATCH"),
        (
            "attestation",
            lambda mesh: _edited(lambda report: report["attestation"]["evidence"]["key_custody"].update(provider="x")),
            "CUSTODY_NOT_STATED",
        ),
        ("session", lambda mesh: _edited(lambda session: session.update(expires_at=2**40)), "SESSION_ID_MISMATCH"),
        (
            "session",
            lambda mesh: _edited(lambda session: session["claims"].update(tee_attested={"status": "unknown"})),
            "SESSION_ID_MISMATCH",
        ),
        ("sessions", lambda mesh: _edited(lambda listed: listed.update(sessions=[])), "FOREIGN_SESSIONS_MISSING"),
        ("sessions", lambda mesh: _edited(lambda listed: listed.pop("sessions")), "FOREIGN_LIST_MALFORMED"),
    ],
    ids=[
        "edited keyset",
        "other keyset",
        "stale nonce",
        "custody",
        "edited session",
        "edited claims",
        "no sessions",
        "no list",
    ],
)
async def test_what_is_tampered_with_is_refused_by_its_reason_and_gets_no_prompt(
    tmp_path: Path,
    other: OtherRouter,
    route: str,
    lie: Callable[[AttestedMesh], Callable[[bytes], bytes]],
    reason: str,
) -> None:
    other.lies[route] = lie(other.mesh)
    async with first_router(tmp_path / "first", other.mesh, listing(other.mesh, other.origin)) as router:
        assert_refused(router, await router.run(asked()), reason)
        assert router.foreign.models(TENANT.tenant_id) == {}
    assert other.bodies == []


async def test_a_keyset_that_fits_all_but_the_quote_is_refused_and_gets_no_prompt(
    tmp_path: Path, other: OtherRouter
) -> None:
    """Every digest is made to fit, and the nonce is the one that was asked with."""

    def exchange(document: bytes) -> bytes:
        value = json.loads(document)
        keyset = value["attestation"]["workload_keyset"]
        keyset["receipt_signing_keys"][0]["public_key"] = "ab" * 32
        value["workload_keyset_digest"] = digest(jcs.dumps(keyset))
        value["attestation"]["report_data"] = report_data(value["workload_keyset_digest"], other.nonce).hex()
        return jcs.dumps(value)

    other.lies["attestation"] = exchange
    async with first_router(tmp_path / "first", other.mesh, listing(other.mesh, other.origin)) as router:
        assert_refused(router, await router.run(asked()), "REPORT_SLOT_MISMATCH")
    assert other.bodies == []


async def test_an_expired_keyset_is_refused_and_gets_no_prompt(tmp_path: Path, other_mesh: AttestedMesh) -> None:
    # By its own clock it has not ended.
    async with other_router(tmp_path / "other", other_mesh, ahead_seconds=-8 * DAY_SECONDS) as other:
        async with first_router(tmp_path / "first", other_mesh, listing(other_mesh, other.origin)) as router:
            assert_refused(router, await router.run(asked()), "KEYSET_EXPIRED")
        assert other.bodies == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"measurements": []}, "MEASUREMENT_NOT_ALLOWED"),
        ({"subject": "spiffe://other.example/router/a"}, "FOREIGN_SUBJECT_NOT_ACCEPTED"),
        ({"gpu": True}, "SESSION_CLAIMS_INSUFFICIENT"),
    ],
)
async def test_what_policy_wants_and_is_not_shown_is_refused(
    tmp_path: Path, other: OtherRouter, changes: dict[str, Any], reason: str
) -> None:
    async with first_router(tmp_path / "first", other.mesh, listing(other.mesh, other.origin, **changes)) as router:
        assert_refused(router, await router.run(asked()), reason)
    assert other.bodies == []


async def test_another_machines_root_is_refused(tmp_path: Path, other: OtherRouter) -> None:
    stranger = AttestedMesh.create(int(time.time()))
    policy = listing(stranger, other.origin, measurements=[other.mesh.workloads["router"].measurement.to_json()])
    async with first_router(tmp_path / "first", other.mesh, policy) as router:
        answer = await router.run(asked())
    assert (answer.started.status, error_type(answer)) == (503, "upstream_verification_failed")
    assert other.bodies == []


async def test_an_answer_whose_receipt_was_edited_is_not_released(router: RouterBench, other: OtherRouter) -> None:
    other.lies["receipts"] = _edited(lambda receipt: receipt.update(served_at=receipt["served_at"] + 1))
    answer = await router.run(asked())
    assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    assert b"RECEIPT_SIGNATURE_INVALID" in answer.body
    receipt = last_receipt(router)
    assert Aborted("upstream_failed") in receipt.events
    assert not [event for event in receipt.events if isinstance(event, ServedByForeign)]
    assert receipt.forwarded is not None
    assert receipt.forwarded.body_hash == digest(other.bodies[0])


async def test_the_receipt_of_another_answer_proves_nothing(router: RouterBench, other: OtherRouter) -> None:
    await router.run(asked())
    (earlier,) = [event for event in last_receipt(router).events if isinstance(event, ServedByForeign)]
    assert earlier.receipt is not None
    proof = earlier.receipt.encode()
    other.lies["receipts"] = lambda receipt: proof
    answer = await router.run(asked(seed=1))
    assert answer.started.status == 502
    assert b"REQUEST_NOT_RECEIPTED" in answer.body


async def test_a_service_with_other_keys_is_verified_anew_and_no_request_fails(
    tmp_path: Path, other_mesh: AttestedMesh
) -> None:
    async with AsyncExitStack() as before, AsyncExitStack() as routers:
        other = await before.enter_async_context(other_router(tmp_path / "before", other_mesh))
        policy = listing(other_mesh, other.origin)
        router = await routers.enter_async_context(first_router(tmp_path / "first", other_mesh, policy))
        assert (await router.run(asked())).started.status == 200
        first = last_receipt(router).upstream
        await before.aclose()
        async with other_router(tmp_path / "after", other_mesh, port=other.port) as after:
            answers = await asyncio.gather(*(router.run(asked(seed=number)) for number in range(3)))
            assert [answer.started.status for answer in answers] == [200] * 3
            assert after.reports == 1
            assert len(after.bodies) == 3
    receipt = last_receipt(router)
    assert isinstance(receipt.upstream, UpstreamVerified)
    assert receipt.upstream != first
    assert not [event for event in receipt.events if isinstance(event, Aborted)]


async def test_a_service_with_other_sessions_is_verified_anew_and_no_request_fails(
    tmp_path: Path, other_mesh: AttestedMesh
) -> None:
    async with other_router(tmp_path / "other", other_mesh, nodes=2) as other:
        first, second = (node.provider() for node in other.bench.nodes)
        other.bench.upstreams.take(other.bench.snapshot(first))
        async with first_router(tmp_path / "first", other_mesh, listing(other_mesh, other.origin)) as router:
            other.bench.upstreams.take(other.bench.snapshot(second))
            await other.bench.upstreams.verify()
            assert (await router.run(asked())).started.status == 200
            assert [len(node.requests) for node in other.bench.nodes] == [0, 1]
            assert other.reports == 2
            outcomes = [event for event in last_receipt(router).events if isinstance(event, UpstreamVerified)]
            assert len({outcome.session_id for outcome in outcomes}) == 2


async def test_a_service_that_is_away_when_it_is_verified_again_keeps_its_session(
    tmp_path: Path, other_mesh: AttestedMesh
) -> None:
    async with AsyncExitStack() as before, AsyncExitStack() as routers:
        other = await before.enter_async_context(other_router(tmp_path / "before", other_mesh))
        policy = listing(other_mesh, other.origin)
        router = await routers.enter_async_context(first_router(tmp_path / "first", other_mesh, policy))
        (kept,) = router.foreign.current_sessions(None, None)
        await before.aclose()
        router.member.policy.enact(replace(policy, version=2))
        with capture_logs() as logs:
            await router.foreign.verify()
        assert [entry["reason"] for entry in logs] == ["ROUTER_UNREACHABLE"]
        assert router.foreign.current_sessions(None, None) == [kept]
        assert (await router.run(asked())).started.status == 502
        async with other_router(tmp_path / "after", other_mesh, port=other.port):
            assert (await router.run(asked())).started.status == 200
            (renewed,) = router.foreign.current_sessions(None, None)
            assert renewed != kept
            assert await router.foreign.session(session_id(kept.document)) == kept.document


async def test_a_service_that_refuses_to_be_verified_again_keeps_its_session(
    router: RouterBench, other: OtherRouter
) -> None:
    (kept,) = router.foreign.current_sessions(None, None)
    other.lies["attestation"] = lambda report: b"{}"
    policy: Policy = router.member.policy.current
    router.member.policy.enact(replace(policy, version=2))
    await router.foreign.verify()
    assert other.reports == 2
    assert router.foreign.current_sessions(None, None) == [kept]
    assert (await router.run(asked())).started.status == 200


async def test_nothing_of_the_prompt_leaves_before_its_receipt_would_say_so(
    router: RouterBench, other: OtherRouter
) -> None:
    """The caller leaves at the very moment at which it is told that the service is reached."""
    route = router.foreign.choose(HERE, CHAT, Constraints(), TENANT.tenant_id, frozenset())
    assert route is not None
    errand = Errand(parse(asked(), CHAT), CHAT, "req_1", TENANT.tenant_id, PATIENCE_SECONDS, required=True)
    steps = route.forward(errand)
    assert isinstance(await anext(steps), Reached)
    await steps.aclose()
    assert (await router.run(asked(seed=1))).started.status == 200
    assert len(other.bodies) == 1
    assert b'"seed":1' in other.bodies[0]


async def test_a_revoked_measurement_ends_a_standing_session_at_once(router: RouterBench, other: OtherRouter) -> None:
    measured = other.mesh.workloads["router"].measurement.compose_hash
    policy: Policy = router.member.policy.current
    router.member.policy.enact(replace(policy, revoked=Revoked(compose_hashes=frozenset({measured}))))
    await router.foreign.verify()
    assert_refused(router, await router.run(asked()), "MEASUREMENT_REVOKED")
    assert other.bodies == []


async def test_a_provider_that_policy_no_longer_lists_is_not_used_before_anybody_looks(
    router: RouterBench, other: OtherRouter
) -> None:
    policy: Policy = router.member.policy.current
    router.member.policy.enact(replace(policy, foreign_providers=()))
    assert router.foreign.choose(HERE, CHAT, Constraints(), TENANT.tenant_id, frozenset()) is None
    answer = await router.run(asked())
    assert (answer.started.status, error_type(answer)) == (404, "not_found_error")
    assert other.bodies == []


async def test_a_provider_whose_entry_changed_is_not_used_before_it_is_verified_by_the_new_one(
    router: RouterBench, other: OtherRouter
) -> None:
    policy: Policy = router.member.policy.current
    (provider,) = policy.foreign_providers
    stricter = replace(provider, session_claims=frozenset({"gpu_attested"}))
    router.member.policy.enact(replace(policy, foreign_providers=(stricter,)))
    assert router.foreign.choose(HERE, CHAT, Constraints(), TENANT.tenant_id, frozenset()) is None
    await router.foreign.verify()
    assert_refused(router, await router.run(asked()), "SESSION_CLAIMS_INSUFFICIENT")
    assert other.bodies == []


async def test_an_answer_under_way_is_cut_when_its_providers_code_is_revoked(
    router: RouterBench, other: OtherRouter
) -> None:
    """The provider is silent by then, and would be for ever."""
    node = other.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    answering = asyncio.create_task(router.run(asked(stream=True)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await node.waiting.wait()
        measured = other.mesh.workloads["router"].measurement.compose_hash
        policy: Policy = router.member.policy.current
        router.member.policy.enact(replace(policy, revoked=Revoked(compose_hashes=frozenset({measured}))))
        await router.foreign.verify()
        answer = await answering
        await node.left.wait()
    assert b"MEASUREMENT_REVOKED" in answer.body
    assert Aborted("upstream_failed") in last_receipt(router).events


async def test_nothing_of_an_answer_under_another_keyset_goes_out(router: RouterBench, other: OtherRouter) -> None:
    other.bench.nodes[0].stream()
    other.claimed_keyset = digest(b"another keyset")
    answer = await router.run(asked(stream=True))
    assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    assert other.reports == 3


async def test_a_provider_that_renewed_its_keyset_goes_on_under_the_verified_one_until_that_ends(
    router: RouterBench, other: OtherRouter
) -> None:
    workload, reports = other.bench.workload, other.reports
    verified = workload.keyset
    workload.serve(workload.bear())
    assert (await router.run(asked())).started.status == 200
    assert last_receipt(other.bench, verified).workload_keyset_digest == verified.digest
    assert other.reports == reports
    other.clock.ahead_seconds = 8 * DAY_SECONDS
    workload.serve(workload.bear())
    assert (await router.run(asked())).started.status == 200
    assert last_receipt(other.bench).workload_keyset_digest == workload.keyset_digest != verified.digest
    assert other.reports == reports + 1


async def test_a_tenant_for_whom_policy_demands_what_no_provider_shows_is_refused(
    router: RouterBench, other: OtherRouter
) -> None:
    policy: Policy = router.member.policy.current
    here = TenantConstraints(regions=frozenset({"here"}))
    demanding = replace(policy, constraints=TenantsConstraints(by_tenant={TENANT.tenant_id: here}))
    router.member.policy.enact(demanding)
    answer = await router.run(asked())
    assert (answer.started.status, error_type(answer)) == (503, "tenant_constraints_unmet")
    assert router.foreign.models(TENANT.tenant_id) == {}
    assert other.bodies == []
