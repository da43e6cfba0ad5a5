"""A dstack-vllm-proxy worker: verified where its report binds the channel, and named unverified where it does not."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT, MESSAGES, Endpoint
from libs.aci.receipt import Receipt, verify_receipt, verify_serving
from libs.aci.receipt_events import ServedByForeign, UpstreamFailed, UpstreamVerified
from libs.aci.session import TlsBinding, verify_session
from libs.client.chain import verify_chain
from libs.client.foreign import parse_evidence
from libs.client.vllm_proxy import WorkerSignatureInvalid, verify_signature, verify_worker
from libs.events.records import MAX_ENTRY_BYTES
from libs.policy.document import Policy
from libs.policy.revoked import Revoked
from libs.transparency.leaf import Kind
from services.router.reading import LITTLE
from services.router.routing.foreign.access import Credentials
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import MachineCollateral, policy_listing
from tests.fakes.held_up import held_up
from tests.fakes.https_router import server_context
from tests.fakes.ledgers import TENANT
from tests.fakes.policies import KeeperTwin
from tests.fakes.relay import impersonating
from tests.fakes.routers import Answer, RouterBench, aborts, prompt, router_bench
from tests.fakes.sealed_prompts import Client
from tests.fakes.vllm_proxy_worker import API_KEY, WorkerTwin, vllm_proxy_worker

HERE, THERE = "their-model", "there/model"
WORDS = "which nobody on the way may read"
LARGE = {"prompt_logprobs": [-1e-05, 1e22, -0.5] * LITTLE}


@pytest.fixture
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
async def worker(mesh: AttestedMesh, tmp_path: Path) -> AsyncIterator[WorkerTwin]:
    async with vllm_proxy_worker(WorkerTwin(mesh), tmp_path) as running:
        yield running


def listing(mesh: AttestedMesh, origin: str, **changes: Any) -> Policy:
    provider = {
        "name": "worker",
        "kind": "dstack-vllm-proxy",
        "origin": origin,
        "models": {HERE: THERE},
        "measurements": [mesh.workloads["router"].measurement.to_json()],
        "best_effort": False,
        **changes,
    }
    return policy_listing(mesh, [provider], constraints={"default": {"verified_only": False}})


@asynccontextmanager
async def verifying(folder: Path, worker: WorkerTwin, policy: Policy | None = None) -> AsyncIterator[RouterBench]:
    """A router that has verified once what its policy lists."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - a folder of the test's own
    async with router_bench(
        folder,
        nodes=0,
        policy=KeeperTwin(policy or listing(worker.mesh, worker.origin)),
        credentials={"worker": Credentials(API_KEY, worker.mesh.ca.pem)},
        collateral=MachineCollateral(worker.mesh),
    ) as router:
        await router.foreign.verify()
        yield router


async def ask(
    folder: Path, worker: WorkerTwin, policy: Policy | None = None, endpoint: Endpoint = CHAT, **members: Any
) -> tuple[Answer, Receipt, RouterBench]:
    async with verifying(folder, worker, policy) as router:
        asked = prompt(model=HERE, messages=[{"role": "user", "content": WORDS}], **members)
        answer = await router.run(asked, endpoint=endpoint)
        document = jcs.dumps(dict(router.ledger.of(Kind.RECEIPT)[-1]))
        return answer, verify_receipt(document, router.workload.keyset), router


def assert_refused(answer: Answer, receipt: Receipt, reason: str) -> None:
    assert answer.started.status == 503
    assert reason in answer.body.decode()
    assert receipt.forwarded is None


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
async def test_a_worker_whose_report_binds_the_channel_serves_and_proves_its_answer(
    tmp_path: Path, worker: WorkerTwin, stream: bool
) -> None:
    answer, receipt, router = await ask(tmp_path / "router", worker, stream=stream)
    assert answer.started.status == 200
    (body,) = worker.bodies
    assert json.loads(body)["model"] == THERE
    (document,) = (jcs.dumps(dict(body)) for body in router.ledger.of(Kind.SESSION))
    assert isinstance(receipt.upstream, UpstreamVerified)
    session = verify_session(document, receipt.upstream.session_id)
    # Its policy lets tenants be served unverified, and the request demanded nothing.
    assert not verify_serving(receipt, session, demanded=False).required
    assert session.bindings == (TlsBinding(worker.origin, worker.fingerprint.hex()),)
    assert session.identity == {"signing_address": worker.address.hex()}
    assert session.claims.tee_attested.status == "asserted"
    assert session.claims.gpu_attested.status == "unknown"
    policy: Policy = router.member.policy.current
    evidence = parse_evidence(session.evidence)
    proven = verify_worker(evidence, policy.foreign_providers[0], policy, receipt.served_at)
    (link,) = [event for event in receipt.events if isinstance(event, ServedByForeign)]
    assert link.receipt is not None
    signed = json.loads(link.receipt)["text"].partition(":")[2]
    verify_signature(link.receipt.encode(), proven, body, {signed})
    assert "foreign/worker, compose" in verify_chain(document, receipt, receipt.upstream, link, None, policy)
    other = replace(link, receipt=json.dumps({**json.loads(link.receipt), "signature": "00" * 64}))
    assert other.receipt is not None
    other = replace(other, receipt_sha256=hashlib.sha256(other.receipt.encode()).hexdigest())
    with pytest.raises(WorkerSignatureInvalid):
        verify_chain(document, receipt, receipt.upstream, other, None, policy)


async def test_a_large_answer_is_proven_as_a_small_one_is(tmp_path: Path, worker: WorkerTwin) -> None:
    worker.buffered = LARGE
    answer, receipt, _ = await ask(tmp_path / "router", worker)
    assert (answer.started.status, json.loads(answer.body).items() >= LARGE.items()) == (200, True)
    assert [type(event) for event in receipt.events].count(ServedByForeign) == 1


async def test_a_large_answer_is_read_in_its_tenants_turn_and_not_before(tmp_path: Path, worker: WorkerTwin) -> None:
    worker.buffered = LARGE
    async with verifying(tmp_path / "router", worker) as router:
        with held_up(router.exchanges._reading.answer):
            answer = await router.run(prompt(model=HERE), seconds=7.0)
        assert (answer.started.status, worker.signatures) == (502, 0)
        assert aborts(router.only_receipt()) == ["deadline_exceeded"]


async def test_of_an_answer_that_was_encrypted_no_hash_in_clear_is_in_the_receipt(
    tmp_path: Path, worker: WorkerTwin
) -> None:
    """A short answer can be guessed by its hash, which the worker signs: its signature stays here."""
    async with verifying(tmp_path / "router", worker) as router:
        key = router.workload.newest.e2ee_keys[0]
        client = Client(key, key.suite.key(), HERE)
        answer = await router.run(client.sealed_chat(), sealing=client.headers())
        assert answer.started.sealed is not None
        (signed,) = worker.texts.values()
        document = jcs.dumps(dict(router.ledger.of(Kind.RECEIPT)[-1]))
        receipt = verify_receipt(document, router.workload.keyset)
        assert signed.partition(":")[2].encode() not in document
        (link,) = [event for event in receipt.events if isinstance(event, ServedByForeign)]
        assert link.receipt is None
        assert isinstance(receipt.upstream, UpstreamVerified)
        session = await router.foreign.session(receipt.upstream.session_id)
        policy: Policy = router.member.policy.current
        assert "foreign/worker, compose" in verify_chain(session, receipt, receipt.upstream, link, None, policy)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda report: report.update(tls_cert_fingerprint="00" * 32), "WORKER_REPORT_DATA_MISMATCH"),
        (lambda report: report.pop("tls_cert_fingerprint"), "WORKER_REPORT_DATA_MISMATCH"),
        (
            lambda report: report.update(
                signing_address=Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
            ),
            "WORKER_REPORT_DATA_MISMATCH",
        ),
        (lambda report: report.update(signing_algo="ecdsa"), "WORKER_REPORT_MALFORMED"),
        (lambda report: report.update(intel_quote="00"), "QUOTE_MALFORMED"),
        (lambda report: report.update(info={"tcb_info": {"app_compose": "{}"}}), "COMPOSE_HASH_MISMATCH"),
        (lambda report: report.update(info={}), "WORKER_REPORT_MALFORMED"),
        (lambda report: report.update(event_log="{}"), "WORKER_REPORT_MALFORMED"),
        (lambda report: report.update(event_log="[]"), "EVENT_LOG_DOES_NOT_REPLAY"),
    ],
    ids=["tls key", "no tls key", "signing key", "algorithm", "quote", "compose", "no compose", "no log", "empty log"],
)
async def test_what_a_report_does_not_prove_is_refused_and_gets_no_prompt(
    tmp_path: Path, worker: WorkerTwin, lie: Callable[[dict[str, Any]], object], reason: str
) -> None:
    worker.lies["report"] = lie
    answer, receipt, _ = await ask(tmp_path / "router", worker)
    assert_refused(answer, receipt, reason)
    assert worker.bodies == []


async def test_an_old_report_is_refused(tmp_path: Path, worker: WorkerTwin) -> None:
    old = worker.report(b"\x01" * 32, 2)
    worker.lies["report"] = lambda report: report.update(old)
    answer, receipt, _ = await ask(tmp_path / "router", worker)
    assert_refused(answer, receipt, "WORKER_REPORT_DATA_MISMATCH")
    assert worker.bodies == []


async def test_code_that_policy_does_not_list_is_refused(tmp_path: Path, worker: WorkerTwin) -> None:
    policy = listing(worker.mesh, worker.origin, measurements=[])
    answer, receipt, _ = await ask(tmp_path / "router", worker, policy)
    assert_refused(answer, receipt, "MEASUREMENT_NOT_ALLOWED")


async def test_a_tls_key_that_operators_revoked_is_refused(tmp_path: Path, worker: WorkerTwin) -> None:
    policy = listing(worker.mesh, worker.origin)
    policy = replace(policy, revoked=Revoked(keys=frozenset({worker.fingerprint.hex()})))
    answer, receipt, _ = await ask(tmp_path / "router", worker, policy)
    assert_refused(answer, receipt, "FOREIGN_KEY_REVOKED")
    assert worker.bodies == []


async def test_a_relay_with_its_own_certificate_reads_no_prompt(tmp_path: Path, worker: WorkerTwin) -> None:
    (tmp_path / "relay").mkdir()
    context = server_context(worker.mesh, tmp_path / "relay", ec.generate_private_key(ec.SECP256R1()))
    async with impersonating(f"127.0.0.1:{worker.port}", context, worker.mesh.ca.pem) as recording:
        policy = listing(worker.mesh, f"https://{recording.address}")
        answer, receipt, _ = await ask(tmp_path / "router", worker, policy)
    assert_refused(answer, receipt, "TLS_KEY_NOT_ATTESTED")
    assert WORDS.encode() not in recording.everything
    assert worker.bodies == []


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda signature: signature.update(signature="00" * 64), "WORKER_SIGNATURE_INVALID"),
        (lambda signature: signature.update(text="00" * 32 + ":" + "00" * 32), "WORKER_SIGNATURE_INVALID"),
        (
            lambda signature: signature.update(
                text=signature["text"].partition(":")[0] + ":" + hashlib.sha256(b"other").hexdigest()
            ),
            "WORKER_SIGNATURE_INVALID",
        ),
        (lambda signature: signature.pop("signature"), "WORKER_REPORT_MALFORMED"),
    ],
    ids=["signature", "request", "response", "none"],
)
async def test_an_answer_that_the_attested_key_did_not_sign_is_not_released(
    tmp_path: Path, worker: WorkerTwin, lie: Callable[[dict[str, Any]], object], reason: str
) -> None:
    worker.lies["signature"] = lie
    answer, _, _ = await ask(tmp_path / "router", worker)
    assert answer.started.status == 502
    assert reason in answer.body.decode()


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
async def test_an_answer_whose_signature_is_padded_beyond_what_can_be_logged_is_not_released(
    tmp_path: Path, worker: WorkerTwin, stream: bool
) -> None:
    """The worker's key signs the text alone, so what stands beside it is not proven by anything."""
    worker.lies["signature"] = lambda signature: signature.update(padding="x" * MAX_ENTRY_BYTES)
    answer, receipt, _ = await ask(tmp_path / "router", worker, stream=stream)
    assert b'"type":"upstream_error"' in answer.body
    assert (aborts(receipt), receipt.returned.body_hash) == (["upstream_failed"], digest(answer.body))
    assert not [event for event in receipt.events if isinstance(event, ServedByForeign)]


@pytest.mark.parametrize(
    "signs",
    [
        lambda text: "00" * 32 + ":" + text.partition(":")[2],
        lambda text: text.partition(":")[0] + ":" + "00" * 32,
        lambda text: text.partition(":")[0],
    ],
    ids=["another request", "another response", "no response"],
)
async def test_what_the_attested_key_signed_of_another_exchange_proves_nothing(
    tmp_path: Path, worker: WorkerTwin, signs: Callable[[str], str]
) -> None:
    worker.signs = signs
    answer, _, _ = await ask(tmp_path / "router", worker)
    assert answer.started.status == 502
    assert b"WORKER_SIGNATURE_INVALID" in answer.body


async def test_another_key_that_signs_the_right_words_is_refused(tmp_path: Path, worker: WorkerTwin) -> None:
    stranger = Ed25519PrivateKey.generate()
    worker.lies["signature"] = lambda signature: signature.update(
        signature=stranger.sign(signature["text"].encode()).hex(),
        signing_address=stranger.public_key().public_bytes_raw().hex(),
    )
    answer, _, _ = await ask(tmp_path / "router", worker)
    assert answer.started.status == 502
    assert b"WORKER_SIGNATURE_INVALID" in answer.body


async def test_a_worker_whose_channel_is_not_bound_is_refused(tmp_path: Path, worker: WorkerTwin) -> None:
    worker.has_tls_key = False
    answer, receipt, _ = await ask(tmp_path / "router", worker)
    assert_refused(answer, receipt, "CHANNEL_NOT_BOUND")
    assert worker.asked == ["2"]
    assert worker.bodies == []


async def test_a_report_of_version_1_in_place_of_2_is_refused(tmp_path: Path, worker: WorkerTwin) -> None:
    def downgrade(report: dict[str, Any]) -> None:
        bound = worker.address + bytes.fromhex(report["request_nonce"])
        report["intel_quote"] = worker.mesh.workloads["router"].td.quote(bound).hex()
        del report["tls_cert_fingerprint"]

    worker.lies["report"] = downgrade
    answer, receipt, _ = await ask(tmp_path / "router", worker)
    assert_refused(answer, receipt, "CHANNEL_NOT_BOUND")
    assert worker.bodies == []


async def test_policy_may_accept_an_unbound_channel_for_named_tenants_and_receipts_say_so(
    tmp_path: Path, worker: WorkerTwin
) -> None:
    worker.has_tls_key = False
    policy = listing(worker.mesh, worker.origin, best_effort=True, tenants=[TENANT.tenant_id])
    answer, receipt, router = await ask(tmp_path / "router", worker, policy)
    assert answer.started.status == 200
    assert worker.asked == ["2", "1"]
    assert receipt.upstream == UpstreamFailed(False, THERE, "channel_not_bound", "foreign/worker")
    assert router.ledger.of(Kind.SESSION) == []
    nobody = listing(worker.mesh, worker.origin, best_effort=True, tenants=[])
    answer, _, _ = await ask(tmp_path / "other", worker, nobody)
    assert answer.started.status == 404
    demanded, _, _ = await ask(tmp_path / "third", worker, policy, provider={"aci_verified": True})
    assert demanded.started.status == 503
    assert len(worker.bodies) == 1


async def test_a_worker_is_not_asked_where_its_kind_does_not_answer(tmp_path: Path, worker: WorkerTwin) -> None:
    answer, receipt, _ = await ask(tmp_path / "router", worker, endpoint=MESSAGES)
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (404, "not_found_error")
    assert isinstance(receipt.upstream, UpstreamFailed)
    assert (receipt.upstream.reason, receipt.forwarded) == ("endpoint_not_offered", None)
    assert worker.bodies == []
