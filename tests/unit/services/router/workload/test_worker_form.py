"""What clients from before ACI are given: held against the very verifier by which routers judge such workers."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any, cast

import pytest

from libs.aci import receipt as receipts
from libs.aci import report
from libs.aci.keyset import TlsKey
from libs.aci.report import SourceProvenance
from libs.client.foreign import VLLM_PROXY_FORMAT, ForeignEvidence
from libs.client.vllm_proxy import (
    Worker,
    WorkerReportDataMismatch,
    WorkerSignatureInvalid,
    verify_request_signed,
    verify_worker,
)
from libs.tee import tdx
from libs.tee.keccak import keccak256
from libs.tee.signer_recovery import recover_signer
from services.router.errors import InvalidRequest, ReportsBusy
from services.router.workload.reports import Reports
from services.router.workload.worker_form import SigningAlgoNotSupported, WorkerForm
from services.router.workload.workload import Workload
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import MachineCollateral, TdGuest, policy_listing
from tests.unit.libs.aci.documents import RECEIPT_KEY, receipt

NONCE = "ab" * 32
ORIGIN = "https://worker.example.org"


class MemberTwin:
    def __init__(self, guest: TdGuest) -> None:
        self.guest = guest


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
def workload() -> Workload:
    return Workload("spiffe://mesh.test/router/1", 86400, (TlsKey("ab" * 32),))


def reports_over(mesh: AttestedMesh, workload: Workload, per_second: float = 1000.0) -> Reports:
    member = cast(Any, MemberTwin(TdGuest(mesh)))
    return Reports(member, workload, MachineCollateral(mesh), SourceProvenance(), per_second, 86400, lambda: 0.0)


@pytest.fixture
def form(mesh: AttestedMesh, workload: Workload) -> WorkerForm:
    return WorkerForm(workload, reports_over(mesh, workload))


def verified(mesh: AttestedMesh, said: dict[str, Any], nonce: str = NONCE) -> Worker:
    """What a router's own verifier makes of a report."""
    provider = {
        "name": "worker",
        "kind": "dstack-vllm-proxy",
        "origin": ORIGIN,
        "models": {"m": "m"},
        "measurements": [mesh.workloads["router"].measurement.to_json()],
        "best_effort": False,
    }
    policy = policy_listing(mesh, [provider])
    evidence = ForeignEvidence(ORIGIN, nonce, json.dumps(said), mesh.collateral, format=VLLM_PROXY_FORMAT)
    return verify_worker(evidence, policy.foreign_providers[0], policy, mesh.now)


@pytest.mark.parametrize("version", ["1", "2", None])
async def test_a_report_is_what_such_a_client_verifies(
    mesh: AttestedMesh, workload: Workload, form: WorkerForm, version: str | None
) -> None:
    said = await form.report(NONCE, "ed25519", version)
    (tls_key,) = workload.keyset.tls_public_keys
    assert verified(mesh, said).spki_sha256 == (tls_key.spki_sha256 if version == "2" else None)
    assert said["all_attestations"] == [{name: one for name, one in said.items() if name != "all_attestations"}]


async def test_a_report_names_the_tls_key_of_the_host_that_is_asked(mesh: AttestedMesh) -> None:
    keys = (TlsKey("aa" * 32), TlsKey("bb" * 32, "b.example"))
    for listed, host, named in (
        (keys, "b.example", "bb" * 32),
        (keys, "c.example", "aa" * 32),
        (keys, "", "aa" * 32),
        (keys[1:], "b.example", "bb" * 32),
    ):
        workload = Workload("spiffe://mesh.test/router/1", 86400, listed)
        said = await WorkerForm(workload, reports_over(mesh, workload)).report(NONCE, "ed25519", "2", host=host)
        assert verified(mesh, said).spki_sha256 == named
    workload = Workload("spiffe://mesh.test/router/1", 86400, keys[1:])
    form = WorkerForm(workload, reports_over(mesh, workload))
    for host in ("c.example", "", "127.0.0.1"):
        with pytest.raises(InvalidRequest):
            await form.report(NONCE, "ed25519", "2", host=host)
        assert (await form.report(NONCE, "ed25519", "1", host=host))["version"] == 1


async def test_a_report_answers_its_own_nonce_and_speaks_for_its_own_key(mesh: AttestedMesh, form: WorkerForm) -> None:
    said = await form.report(NONCE, "ed25519", "2")
    for changed, nonce in ((said, "cd" * 32), ({**said, "signing_address": "11" * 32}, NONCE)):
        with pytest.raises(WorkerReportDataMismatch):
            verified(mesh, changed, nonce)


async def test_an_answers_hashes_are_signed_by_the_attested_key(mesh: AttestedMesh, form: WorkerForm) -> None:
    worker = verified(mesh, await form.report(NONCE, "ed25519", "2"))
    document = receipts.sign(receipt(), RECEIPT_KEY)
    said = form.signature(document, "ed25519")
    signed = receipts.parse(document)
    response_hash = verify_request_signed(json.dumps(said).encode(), worker, signed.received.body_hash)
    assert f"sha256:{response_hash}" == signed.returned.body_hash
    assert said["receipt"] == json.loads(document)
    with pytest.raises(WorkerSignatureInvalid, match="another request"):
        verify_request_signed(json.dumps(said).encode(), worker, "sha256:" + "00" * 32)


async def test_an_ethereum_address_signs_as_wallets_do(form: WorkerForm) -> None:
    reported = await form.report(NONCE, None, None)
    said = form.signature(receipts.sign(receipt(), RECEIPT_KEY), None)
    assert said["signing_algo"] == reported["signing_algo"] == "ecdsa"
    text = said["text"].encode()
    digest = keccak256(b"\x19Ethereum Signed Message:\n" + str(len(text)).encode() + text)
    signer = recover_signer(digest, bytes.fromhex(said["signature"].removeprefix("0x")))
    public = bytes.fromhex(reported["signing_public_key"])
    assert signer[1:] == public[1:33]
    assert said["signing_address"] == reported["signing_address"] == "0x" + keccak256(public[1:])[-20:].hex()
    slot = tdx.read_report(bytes.fromhex(reported["intel_quote"])).report_data
    assert slot == bytes.fromhex(reported["signing_address"][2:]).ljust(32, b"\0") + bytes.fromhex(NONCE)


@pytest.mark.parametrize(
    ("nonce", "challenge"),
    [("AB" * 32, "ab" * 32), ("hello", hashlib.sha256(b"hello").hexdigest()), ("", hashlib.sha256().hexdigest())],
)
async def test_a_nonce_in_another_form_is_hashed(form: WorkerForm, nonce: str, challenge: str) -> None:
    assert (await form.report(nonce, None, None))["request_nonce"] == challenge


async def test_without_a_nonce_there_is_a_fresh_one(form: WorkerForm) -> None:
    first, second = [(await form.report(None, None, None))["request_nonce"] for _ in range(2)]
    assert first != second


@pytest.mark.parametrize("algo", ["rsa", "ED25519", "Ecdsa"])
async def test_another_algorithm_is_refused(form: WorkerForm, algo: str) -> None:
    with pytest.raises(SigningAlgoNotSupported) as refused:
        await form.report(NONCE, algo, None)
    assert (refused.value.status, refused.value.type) == (400, "invalid_signing_algo")
    with pytest.raises(SigningAlgoNotSupported):
        form.signature(receipts.sign(receipt(), RECEIPT_KEY), algo)


@pytest.mark.parametrize("version", ["0", "3", "two"])
async def test_another_version_is_refused(form: WorkerForm, version: str) -> None:
    with pytest.raises(InvalidRequest):
        await form.report(NONCE, None, version)


async def test_whatever_is_asked_for_no_quote_of_it_is_one_of_acis(workload: Workload, form: WorkerForm) -> None:
    """An ACI quote has zeros where this one has the nonce, and a digest where this one has a key (appendix B)."""
    for nonce in ("00" * 32, NONCE):
        expected = report.slot(report.report_data(workload.keyset.digest, nonce))
        for algo in ("ecdsa", "ed25519"):
            for version in ("1", "2"):
                said = await form.report(nonce, algo, version)
                assert tdx.read_report(bytes.fromhex(said["intel_quote"])).report_data != expected
                assert said["signing_public_key"] not in json.dumps(workload.keyset.document())


async def test_the_quote_device_is_asked_no_oftener_for_it(mesh: AttestedMesh, workload: Workload) -> None:
    form = WorkerForm(workload, reports_over(mesh, workload, per_second=0.25))
    await form.report(NONCE, None, None)
    with pytest.raises(ReportsBusy):
        await form.report(NONCE, None, None)
