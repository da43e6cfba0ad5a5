"""Responsible for the cost of appraising evidence, beside the cryptography that it cannot do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from libs.identity.lease import Leases
from libs.tee import binding
from libs.tee import evidence as evidences
from libs.tee.appraisal import appraise
from libs.tee.evidence import Evidence
from libs.tee.nvidia import chain
from libs.tee.nvidia.collected import read_collected
from libs.tee.nvidia.evidence import GpuEvidence, GpuRule
from libs.tee.nvidia.keys import Issuer
from libs.tee.nvidia.token import DetachedEat
from libs.tee.role import RoleRules
from services.devtee.findings import PostedReport
from services.devtee.nras import ISSUER
from tests.bench.bare_crypto import Operation, operations
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Limit, side_by_side
from tests.fakes.certified_router import CertifiedRouter
from tests.fakes.joined_mesh import Clock, JoinedMesh
from tests.unit.libs.tee.bench import CLAIMS, NOW, Bench

_GPU_AGE_SECONDS = 600


def bare(found: Sequence[Operation]) -> Action:
    """The cryptographic operations one after the other, their inputs parsed before."""

    async def act() -> None:
        for operation in found:
            operation()

    return act


def appraisal(bench: Bench, rules: RoleRules, document: bytes) -> Action:
    """All of it, from the bytes to the verdict."""
    context = bench.context()

    async def act() -> None:
        appraise(evidences.parse(document), rules, context)

    return act


def at_first_sight(action: Action) -> Action:
    """Forget before each appraisal which certificates about GPUs were verified before, in others."""

    async def act() -> None:
        chain.verify_issued.cache_clear()
        await action()

    return act


def with_gpu(bench: Bench) -> Evidence:
    """Evidence of a TD whose GPU answered the same challenge: tokens, their key's chain, and the GPU's own report."""
    gpus = bench.machine.gpus
    challenge = bench.issuer.challenge()
    nonce = binding.gpu_nonce(challenge.nonce, bench.spki)
    reports = read_collected(gpus.evidence(nonce)).reports
    posted = [PostedReport(raw.report, raw.certificate_chain.encode()) for raw in reports]
    tokens = DetachedEat.parse(gpus.nras.attest(posted, nonce, NOW))
    gpu = GpuEvidence.of(tokens, {gpus.nras.key_id: gpus.nras.signing.chain}, reports)
    claims = {**CLAIMS, "gpu_evidence_sha256": gpu.digest.hex()}
    return bench.evidence(claims=claims, challenge=challenge, gpu_evidence=gpu)


def gpu_rules(bench: Bench) -> RoleRules:
    gpus = bench.machine.gpus
    issuer = Issuer({}, (gpus.nras.authority.root.der,))
    nothing: frozenset[str] = frozenset()
    rule = GpuRule({ISSUER: issuer}, (gpus.device_root,), nothing, nothing, nothing, _GPU_AGE_SECONDS, True)
    return replace(bench.rules(), gpu=rule, gpu_required=True)


def looking_up(folder: Path, bench: Bench) -> Action:
    """What an open connection costs at every call: the lease of its key, which is the cached verdict."""
    mesh = JoinedMesh(folder, bench.machine)
    kms = mesh.kms()
    leases = Leases(mesh.keeper("bench"), lambda: kms.ca.spki)
    peer = CertifiedRouter(mesh, kms, Clock())
    leases.open(peer.certificate, peer.evidence.document)

    async def act() -> None:
        leases.of(peer.certificate.spki_sha256)

    return act


async def measure(folder: Path, *, seconds: float) -> Section:
    bench = Bench.create()
    plain, full = bench.evidence(), with_gpu(bench)
    root, token_root = bench.machine.vendor_root, bench.machine.gpus.nras.authority.root.der
    actions = [
        bare(operations(full, root, token_root, NOW)),
        at_first_sight(appraisal(bench, gpu_rules(bench), full.document)),
        appraisal(bench, gpu_rules(bench), full.document),
        bare(operations(plain, root, token_root, NOW)),
        appraisal(bench, bench.rules(), plain.document),
        looking_up(folder, bench),
    ]
    bare_full, first_full, whole_full, bare_plain, whole_plain, cached = await side_by_side(
        actions, Limit(count=2000, seconds=seconds, in_a_row=20)
    )
    return Section(
        "appraisal",
        "the bare operations: dcap_qvl, the challenge's signature, every signature about the GPU",
        "as named",
        [
            Row("TD and GPU, parse and appraise", bare_full, whole_full),
            Row("the same, its certificates never seen before", bare_full, first_full),
            Row("TD alone, parse and appraise", bare_plain, whole_plain),
            Row("look-up of a verdict", whole_full, cached),
        ],
        [
            f"evidence documents of {len(full.document)} and {len(plain.document)} bytes, software TEE",
            f"a look-up takes {cached.p50 * 1e6:.1f} microseconds; its base is the whole appraisal",
        ],
    )
