"""What a policy says of an SEV-SNP chip, and evidence of a machine's GPUs, where only the policy differs."""

from __future__ import annotations

from typing import Any

from libs.tee import binding
from libs.tee.challenge import Challenge
from libs.tee.nvidia.collected import read_collected
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.nvidia.token import DetachedEat
from services.devtee.findings import PostedReport
from services.devtee.machine import Machine
from services.devtee.nras import TokenShape
from tests.fakes.snp_platform import DAY, SnpChip


def snp_member(chip: SnpChip) -> dict[str, Any]:
    """The member "snp" of a policy that accepts exactly this chip's patch levels."""
    levels = {name: getattr(chip.tcb, name) for name in ("bootloader", "tee", "snp", "microcode")}
    return {
        "minimum_tcb": {chip.product: levels},
        "maximum_crl_age_seconds": 2 * DAY,
        "minimum_abi_major": 1,
        "minimum_abi_minor": 55,
        "allow_smt": False,
        "require_single_socket": True,
        "required_platform": ["ALIAS_CHECK_COMPLETE", "ECC_ENABLED"],
        "id_keys": [],
        "author_keys": [],
        "minimum_guest_svn": 0,
    }


def own_gpus(
    machine: Machine, challenge: Challenge, spki: bytes, now: int, shape: TokenShape | None = None
) -> GpuEvidence:
    """Evidence of the machine's GPUs that answers a challenge: tokens of its own service, and the GPUs' reports."""
    gpus = machine.gpus
    nonce = binding.gpu_nonce(challenge.nonce, spki)
    reports = read_collected(gpus.evidence(nonce)).reports
    posted = [PostedReport(raw.report, raw.certificate_chain.encode()) for raw in reports]
    tokens = DetachedEat.parse(gpus.nras.attest(posted, nonce, now, shape))
    return GpuEvidence.of(tokens, {gpus.nras.key_id: gpus.nras.signing.chain}, reports)
