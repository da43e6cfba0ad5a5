"""Development GPUs and their token service, over HTTP and through the verifier that knows nothing of them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web

from libs import jcs
from libs.jcs import JsonMalformed
from libs.tee.nvidia.evidence import GpuEvidence, GpuRule, verify_gpu_evidence
from libs.tee.nvidia.jwks import read_jwks
from libs.tee.nvidia.keys import Issuer, verify_key_chain
from services.devtee.findings import AttestationRequestInvalid, PostedReport
from services.devtee.gpu import Gpu, GpuVendor, ReportShape, decode_gpus, encode_gpus
from services.devtee.gpus import GpuReportsRefused, Gpus, Mode
from services.devtee.nras import (
    ABSENT,
    ISSUER,
    ROTATE_AFTER_SECONDS,
    Nras,
    Rotating,
    TokenShape,
    read_request,
    routes,
)

NOW = 1_790_000_000
NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def vendor() -> GpuVendor:
    return GpuVendor.create(NOW)


@pytest.fixture(scope="module")
def gpus(vendor: GpuVendor) -> tuple[Gpu, ...]:
    return vendor.make_gpu(NOW), vendor.make_gpu(NOW)


@pytest.fixture(scope="module")
def nras(vendor: GpuVendor) -> Nras:
    return Nras.create(vendor.root.certificate, NOW)


@asynccontextmanager
async def _serving(nras: Nras) -> AsyncIterator[httpx.AsyncClient]:
    application = web.Application()
    application.router.add_routes(routes(nras, lambda: NOW))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as client:
            yield client
    finally:
        await runner.cleanup()


def _request(gpus: tuple[Gpu, ...], **changes: Any) -> dict[str, Any]:
    """As NVIDIA's SDK posts it."""
    evidence = [
        {
            "evidence": base64.b64encode(gpu.report(NONCE)).decode(),
            "certificate": base64.b64encode(gpu.chain.encode()).decode(),
        }
        for gpu in gpus
    ]
    request = {"nonce": NONCE.hex(), "arch": "HOPPER", "evidence_list": evidence, "claims_version": "3.0", **changes}
    return {name: value for name, value in request.items() if value is not ABSENT}


def _posted(gpu: Gpu, shape: ReportShape | None = None) -> PostedReport:
    return PostedReport(gpu.report(NONCE, shape), gpu.chain.encode())


def _claims(token: str) -> dict[str, Any]:
    segment = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return claims


async def test_served_tokens_and_keys_convince_the_verifier(
    vendor: GpuVendor, gpus: tuple[Gpu, ...], nras: Nras
) -> None:
    async with _serving(nras) as client:
        answer = await client.post("/v4/attest/gpu", json=_request(gpus))
        published = read_jwks((await client.get("/.well-known/jwks.json")).content)
    reports = [{"report": gpu.report(NONCE).hex(), "certificate_chain": gpu.chain} for gpu in gpus]
    chains = {key_id: [der.hex() for der in key.certificates] for key_id, key in published.items()}
    evidence = GpuEvidence.parse(
        {
            "v": 1,
            "vendor": "nvidia",
            "token": answer.json(),
            "switch_token": None,
            "keys": chains,
            "reports": reports,
        }
    )
    rule = GpuRule(
        issuers={ISSUER: Issuer({}, (nras.authority.root.der,))},
        device_roots=(vendor.root.der,),
        allowed_ueids=frozenset(gpu.ueid for gpu in gpus),
        revoked_ueids=frozenset(),
        allowed_models=frozenset(),
        maximum_token_age_seconds=60,
        reports_required=True,
    )
    verdict = verify_gpu_evidence(evidence, NONCE, rule, NOW)
    assert [device.ueid for device in verdict.devices] == [gpu.ueid for gpu in gpus]


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "00"},
        {"nonce": "not hex"},
        {"nonce": ABSENT},
        {"arch": "BLACKWELL"},
        {"claims_version": "2.0"},
        {"evidence_list": []},
        {"evidence_list": [{}]},
        {"evidence_list": [{"evidence": "!", "certificate": "!"}]},
        {"evidence_list": [{"evidence": "", "certificate": ""}]},
        {"evidence_list": [{"evidence": "AA==", "certificate": "AA=="}]},
    ],
)
async def test_other_requests_are_refused(nras: Nras, gpus: tuple[Gpu, ...], changes: dict[str, Any]) -> None:
    async with _serving(nras) as client:
        answer = await client.post("/v4/attest/gpu", json=_request(gpus, **changes))
    assert answer.status_code == 400


def test_too_many_reports_are_refused(gpus: tuple[Gpu, ...]) -> None:
    with pytest.raises(AttestationRequestInvalid, match="1 to 16"):
        read_request(json.dumps(_request(gpus * 9)).encode())


def test_gpu_of_another_vendor_gets_no_token(nras: Nras) -> None:
    stranger = GpuVendor.create(NOW).make_gpu(NOW)
    with pytest.raises(AttestationRequestInvalid, match="not of a development GPU"):
        nras.attest([_posted(stranger)], NONCE, NOW)


@pytest.mark.parametrize(
    ("shape", "claim"),
    [
        (ReportShape(fwid=bytes(48)), "x-nvidia-gpu-attestation-report-cert-chain-fwid-match"),
        (ReportShape(driver="1.2.3"), "x-nvidia-gpu-driver-rim-version-match"),
        (ReportShape(vbios="96.00.9F.00.02"), "x-nvidia-gpu-vbios-rim-version-match"),
    ],
)
def test_service_says_what_it_found_wrong(nras: Nras, gpus: tuple[Gpu, ...], shape: ReportShape, claim: str) -> None:
    overall, tokens = nras.attest([_posted(gpus[0], shape)], NONCE, NOW)
    claims = _claims(tokens["GPU-0"])
    assert claims[claim] is False
    assert (claims["measres"], claims["secboot"], claims["dbgstat"]) == ("fail", None, None)
    assert _claims(overall[1])["x-nvidia-overall-att-result"] is False


def test_service_finds_changed_measurements(nras: Nras, gpus: tuple[Gpu, ...]) -> None:
    shape = ReportShape(measurements={9: bytes(48), 64: bytes(48)})
    _, tokens = nras.attest([_posted(gpus[0], shape)], NONCE, NOW)
    assert _claims(tokens["GPU-0"])["x-nvidia-mismatch-measurement-records"] == [{"index": 9}, {"index": 64}]


def test_service_finds_another_nonce_and_a_broken_signature(nras: Nras, gpus: tuple[Gpu, ...]) -> None:
    _, tokens = nras.attest([_posted(gpus[0])], bytes(32), NOW)
    assert _claims(tokens["GPU-0"])["x-nvidia-gpu-attestation-report-nonce-match"] is False
    good = _posted(gpus[0])
    broken = PostedReport(good.report[:-1] + bytes([good.report[-1] ^ 1]), good.certificate_chain)
    _, tokens = nras.attest([broken], NONCE, NOW)
    assert _claims(tokens["GPU-0"])["x-nvidia-gpu-attestation-report-signature-verified"] is False


def test_shape_changes_what_is_said_and_not_what_was_found(nras: Nras, gpus: tuple[Gpu, ...]) -> None:
    shape = TokenShape(devices={"dbgstat": "enabled"}, chains={"x-nvidia-cert-ocsp-status": "revoked"})
    _, tokens = nras.attest([_posted(gpus[0])], NONCE, NOW, shape)
    claims = _claims(tokens["GPU-0"])
    assert claims["dbgstat"] == "enabled"
    assert claims["x-nvidia-gpu-vbios-rim-cert-chain"]["x-nvidia-cert-ocsp-status"] == "revoked"
    assert claims["measres"] == "success"


def test_devices_and_service_survive_a_restart(vendor: GpuVendor, gpus: tuple[Gpu, ...], nras: Nras) -> None:
    again, devices = decode_gpus(encode_gpus(vendor, gpus))
    assert again.root.der == vendor.root.der
    assert [gpu.ueid for gpu in devices] == [gpu.ueid for gpu in gpus]
    restored = Nras.decode(nras.encode(), NOW + 1)
    assert restored.jwks() == nras.jwks()
    assert restored.encode() == nras.encode()
    restored.attest([_posted(devices[0])], NONCE, NOW)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"key":"","key_id":"k","device_root":""}', b'{"key":7,"key_id":"k","device_root":7}']
)
def test_damaged_state_is_not_read(data: bytes) -> None:
    with pytest.raises((KeyError, ValueError, JsonMalformed)):
        Nras.decode(data, NOW)


def test_service_from_before_keys_were_certified_keeps_its_key(nras: Nras) -> None:
    """And gets an authority, which must be written: the next start would make another."""
    document = jcs.loads_object(nras.encode())
    old = jcs.dumps({name: document[name] for name in ("key", "key_id", "device_root")})
    upgraded = Nras.decode(old, NOW)
    assert upgraded.key_id == nras.key_id
    assert upgraded.key.public_key() == nras.key.public_key()
    key = verify_key_chain(upgraded.signing.chain, (upgraded.authority.root.der,), NOW)
    assert key.key == nras.key.public_key()
    assert Nras.decode(upgraded.encode(), NOW + 1).encode() == upgraded.encode()


def test_service_takes_another_key_every_day_and_publishes_both(nras: Nras) -> None:
    rotating = Rotating(nras)
    assert rotating.at(NOW + ROTATE_AFTER_SECONDS - 1) is nras
    tomorrow = rotating.at(NOW + ROTATE_AFTER_SECONDS)
    assert rotating.at(NOW + ROTATE_AFTER_SECONDS + 1) is tomorrow
    published = [key["kid"] for key in tomorrow.jwks()["keys"]]
    assert published == [tomorrow.key_id, nras.key_id]
    assert tomorrow.key_id != nras.key_id
    assert tomorrow.authority == nras.authority


def test_key_that_is_certified_no_more_is_not_published(nras: Nras) -> None:
    later = Rotating(nras).at(nras.signing.ends_at)
    assert [key["kid"] for key in later.jwks()["keys"]] == [later.key_id]


def test_clock_that_went_back_gets_another_key(nras: Nras) -> None:
    assert Rotating(nras).at(NOW - 1).signing.issued_at == NOW - 1


def test_keys_are_random_and_names_say_development(vendor: GpuVendor, gpus: tuple[Gpu, ...]) -> None:
    assert GpuVendor.create(NOW).root.der != vendor.root.der
    assert gpus[0].chain.count("BEGIN CERTIFICATE") == 5
    signers = (gpus[0].firmware, gpus[0].boot_rom, vendor.provisioner, vendor.identity, vendor.root)
    assert all("Development" in signer.certificate.subject.rfc4514_string() for signer in signers)


def test_nonce_of_another_size_gets_no_report(gpus: tuple[Gpu, ...]) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        gpus[0].report(bytes(31))


async def test_switches_are_vouched_for_by_their_own_reports(gpus: tuple[Gpu, ...], nras: Nras) -> None:
    async with _serving(nras) as client:
        asked = _request(gpus, arch="LS10")
        bundle = (await client.post("/v4/attest/switch", json=asked)).json()
        assert sorted(bundle[1]) == ["SWITCH-0", "SWITCH-1"]
        for changes in ({"arch": "HOPPER"}, {"nonce": "00" * 32}):
            answer = await client.post("/v4/attest/switch", json={**asked, **changes})
            assert answer.status_code == 400, changes
        assert (await client.post("/v4/attest/gpu", json=asked)).status_code == 400


def test_gpus_come_and_go_and_answer_in_confidential_mode_alone(vendor: GpuVendor, nras: Nras) -> None:
    gpus = Gpus(vendor, (), nras)
    for refused in (lambda: gpus.evidence(NONCE), lambda: gpus.unplug(vendor.make_gpu(NOW))):
        with pytest.raises((GpuReportsRefused, ValueError)):
            refused()
    first, second = gpus.plug(NOW), gpus.plug(NOW)
    assert len(jcs.loads_object(gpus.evidence(NONCE))["evidences"]) == 2
    gpus.unplug(first)
    assert gpus.devices == (second,)
    gpus.mode = Mode.OFF
    with pytest.raises(GpuReportsRefused):
        gpus.evidence(NONCE)
    with pytest.raises(ValueError, match="32 bytes"):
        gpus.evidence(NONCE[1:])


def test_developer_tools_show_in_what_is_measured(vendor: GpuVendor, nras: Nras) -> None:
    gpus = Gpus(vendor, (vendor.make_gpu(NOW),), nras)
    gpus.mode = Mode.DEVELOPER_TOOLS
    (entry,) = jcs.loads_object(gpus.evidence(NONCE))["evidences"]
    posted = PostedReport(base64.b64decode(entry["evidence"]), base64.b64decode(entry["certificate"]))
    overall = nras.attest([posted], NONCE, NOW)[0][1]
    claims = json.loads(base64.urlsafe_b64decode(overall.split(".")[1] + "=="))
    assert claims["x-nvidia-overall-att-result"] is False
