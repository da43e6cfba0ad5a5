"""A real Hopper GPU's report under NVIDIA's own root, and a real but unsigned token bundle of an H100."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import pynvml
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from libs.errors import MeshError
from libs.gpus import nvml
from libs.gpus.observed import observed_in
from libs.tee.nvidia import claims
from libs.tee.nvidia.evidence import GpuEvidence, GpuRule, RawReport, verify_gpu_evidence
from libs.tee.nvidia.keys import Issuer, Keyring
from libs.tee.nvidia.report import parse_report, verify_report
from libs.tee.nvidia.token import DetachedEat, verify_bundle
from tests.unit.libs.tee.nvidia.gpu_bench import read_claims

_FOLDER = os.environ.get("TEEMESH_FIXTURES")
pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(_FOLDER is None, reason="TEEMESH_FIXTURES does not name the outside vectors"),
]
_GPU = Path(_FOLDER or "") / "quotes" / "gpu"

_NONCE = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
_FWID = "f5c384aebb579217a2c66b17ed0f28e6a9b8d639041acd7b4721cec004f7275494ba94bb5cdfdb3055ee051762b1f75d"
# What NVIDIA's own verifier states for this very report.
_UEID = "478176379286082186618948445787393647364802107249"
# When the bundle of the H100 was made; the report's chain does not end.
_NOW = 1784207862


def _report() -> bytes:
    return bytes.fromhex((_GPU / "hopper-report.hex").read_text())


def _chain(name: str = "hopper-cert-chain.pem") -> str:
    return (_GPU / name).read_text()


def _root() -> bytes:
    certificate = x509.load_pem_x509_certificate((_GPU / "nvidia-device-root.pem").read_bytes())
    return certificate.public_bytes(Encoding.DER)


def _refusal(report: bytes, chain: str, *, nonce: bytes = _NONCE, root: bytes | None = None) -> str:
    with pytest.raises(MeshError) as refusal:
        verify_report(report, chain, nonce, (root or _root(),), _NOW)
    return refusal.value.reason


def test_real_report_is_verified_under_nvidias_root() -> None:
    verified = verify_report(_report(), _chain(), _NONCE, (_root(),), _NOW)
    assert verified.ueid == _UEID
    assert (verified.driver, verified.vbios) == ("550.90.07", "96.00.9F.00.01")
    assert verified.fwid.hex() == _FWID


def test_measurements_are_those_that_another_verifier_reads() -> None:
    expected = json.loads((_GPU / "hopper-report-claims.json").read_text())
    measurements = parse_report(_report()).measurements
    assert {str(index): value.hex() for index, value in measurements.items()} == expected["measurements"]


# In the nonce, the measurements, the opaque data, and both halves of the signature.
@pytest.mark.parametrize("at", [4, 35, 110, 3000, 3700, -96, -1])
def test_tampered_report_is_refused(at: int) -> None:
    report = bytearray(_report())
    report[at] ^= 1
    assert _refusal(bytes(report), _chain()) == "GPU_REPORT_SIGNATURE_INVALID"


def test_truncated_report_is_refused() -> None:
    report = _report()
    for length in range(0, len(report), 7):
        assert _refusal(report[:length], _chain()) == "GPU_REPORT_MALFORMED"


def test_replayed_report_is_refused() -> None:
    assert _refusal(_report(), _chain(), nonce=bytes(32)) == "GPU_REPORT_NONCE_MISMATCH"


@pytest.mark.parametrize("name", ["hopper-cert-chain-no-ica.pem", "hopper-cert-chain-no-leaf.pem"])
def test_incomplete_chain_is_refused(name: str) -> None:
    assert _refusal(_report(), _chain(name)) == "GPU_CHAIN_INVALID"


def test_real_report_is_refused_where_policy_names_another_root() -> None:
    leaf = x509.load_pem_x509_certificates(_chain().encode())[0].public_bytes(Encoding.DER)
    assert _refusal(_report(), _chain(), root=leaf) == "GPU_CHAIN_NOT_TRUSTED"


def _bundle() -> Any:
    return json.loads((_GPU / "h100-nvattest.json").read_text())["detached_eat"]


def test_unsigned_bundle_of_a_local_verifier_is_refused() -> None:
    rule = GpuRule(
        issuers={"NVAT-LOCAL-VERIFIER": Issuer({}, ())},
        device_roots=(_root(),),
        allowed_ueids=frozenset(),
        revoked_ueids=frozenset(),
        allowed_models=frozenset(),
        maximum_token_age_seconds=600,
        reports_required=False,
    )
    evidence = GpuEvidence.parse(
        {"v": 1, "vendor": "nvidia", "token": _bundle(), "switch_token": None, "keys": {}, "reports": []}
    )
    with pytest.raises(MeshError) as refusal:
        verify_gpu_evidence(evidence, bytes([0x11]) * 32, rule, _NOW)
    assert refusal.value.reason == "GPU_TOKEN_UNSIGNED"
    with pytest.raises(MeshError, match="not signed"):
        verify_bundle(DetachedEat.parse(_bundle()), bytes([0x11]) * 32, Keyring(rule.issuers, {}, _NOW), 600, _NOW)


def test_claims_of_a_real_h100_are_the_ones_that_are_asked_for() -> None:
    (_, overall), tokens = _bundle()
    claims.judge_version(read_claims(overall))
    device = claims.judge_gpu("GPU-0", read_claims(tokens["GPU-0"]))
    claims.judge_overall(read_claims(overall))
    assert (device.hwmodel, device.driver, device.vbios) == ("GH100 A01 GSP BROM", "580.159.03", "96.00.D9.00.01")
    assert device.ueid == "457723480349051719100670602112458195243836813799"


def test_a_real_gpus_answer_comes_out_of_nvmls_structures_as_it_went_in() -> None:
    report, certificate = (
        pynvml.c_nvmlConfComputeGpuAttestationReport_t(),
        pynvml.c_nvmlConfComputeGpuCertificate_t(),
    )
    report.attestationReportSize = len(_report())
    ctypes.memmove(report.attestationReport, _report(), len(_report()))
    chain = _chain().encode()
    certificate.attestationCertChainSize = len(chain)
    ctypes.memmove(certificate.attestationCertChain, chain, len(chain))
    verified = verify_report(nvml.report_of(report), nvml.chain_of(certificate), _NONCE, (_root(),), _NOW)
    assert verified.ueid == _UEID
    (seen,) = observed_in((RawReport(nvml.report_of(report), nvml.chain_of(certificate)),)).devices
    assert "driver 550.90.07 vbios 96.00.9F.00.01" in seen
    assert len(chain) <= len(certificate.attestationCertChain)
