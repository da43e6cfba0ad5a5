"""What a row is, and what rows are made from: one software TEE of every kind, made once for a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from libs import jcs
from libs.tee import binding
from libs.tee.appraisal import AppraisalContext, SignedBy, appraise
from libs.tee.challenge import Challenge
from libs.tee.device import DeviceLists
from libs.tee.evidence import Evidence, assemble, parse
from libs.tee.measurement import MeasurementSet
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.role import RoleRules
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.platform import SnpRules
from libs.tee.snp.report import Product
from libs.tee.snp.rules import SnpMeasurement, SnpRule
from libs.tee.steps import Steps
from tests.fakes import snp_platform
from tests.fakes.snp_platform import SnpChip, chip
from tests.unit.libs.tee.bench import CLAIMS, COMPOSE, NOW, Bench
from tests.unit.libs.tee.nvidia.gpu_bench import GpuBench

Present = Callable[[Steps], object]
"""Hands prepared evidence to the real entry point. It MUST do nothing else: it is timed, traced and run on mutants."""


@dataclass(frozen=True, slots=True)
class Row:
    # What is wrong, in words that no other row has.
    name: str
    # The numbered step that refuses; None where the entry point refuses outside of the numbered steps.
    step: int | None
    reason: str
    make: Callable[[Benches], Present]


class Benches:
    """Everything that rows are made from. Keys are random, so two of these share nothing."""

    def __init__(self) -> None:
        self.tdx = Bench.create()
        self.gpu = GpuBench.create()

    @cached_property
    def other(self) -> Bench:
        """Another machine under another root, another mesh, another key."""
        return Bench.create()

    @property
    def chip(self) -> SnpChip:
        return chip()

    @property
    def other_chip(self) -> SnpChip:
        return chip(Product.GENOA)


def presenting(document: bytes, rules: RoleRules, context: AppraisalContext) -> Present:
    """Read a document and appraise it, as every verifier of the mesh does."""

    def present(steps: Steps) -> object:
        with steps.step(1):
            evidence = parse(document)
        return appraise(evidence, rules, context, steps)

    return present


def edited(evidence: Evidence, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """Change a document's value and write it down again: nothing is signed anew."""
    value = jcs.loads_object(evidence.document)
    edit(value)
    return jcs.dumps(value)


@dataclass(frozen=True, slots=True)
class SnpCase:
    """Good evidence of an SEV-SNP guest, any part of which a row replaces."""

    chip: SnpChip
    bench: Bench
    now: int = snp_platform.NOW

    def challenge(self) -> Challenge:
        return self.bench.issuer.challenge(self.now)

    def rule(self, **changes: Any) -> SnpRule:
        rule = SnpRule(
            minimum_tcb={self.chip.product: self.chip.tcb},
            maximum_crl_age_seconds=2 * snp_platform.DAY,
            minimum_abi=(1, 55),
            require_single_socket=True,
        )
        return replace(rule, **changes)

    def rules(self, rule: SnpRule | None = None, roots: tuple[bytes, ...] | None = None, **changes: Any) -> RoleRules:
        snp = SnpRules(
            vendor_roots=(self.chip.root,) if roots is None else roots,
            rule=rule or self.rule(),
            measurements=MeasurementSet(frozenset({self.measurement})),
        )
        rules = RoleRules("router", None, snp, DeviceLists().rule(), None, False, {})
        return replace(rules, **changes)

    @property
    def measurement(self) -> SnpMeasurement:
        return SnpMeasurement(
            compose_hash=hashlib.sha256(COMPOSE.encode()).hexdigest(),
            launch_digest="0c" * 48,
            family_id="00" * 16,
            image_id="00" * 16,
        )

    def context(self) -> AppraisalContext:
        return AppraisalContext(self.now, self.bench.spki, SignedBy(self.bench.issuer.spki, 300), policy_version=7)

    def report(
        self,
        challenge: Challenge,
        patches: Mapping[int, bytes] | None = None,
        claims: Mapping[str, Any] = CLAIMS,
        **changes: int | bytes,
    ) -> bytes:
        bound = {
            "report_data": binding.report_data(challenge.nonce, self.bench.spki, claims),
            "host_data": hashlib.sha256(COMPOSE.encode()).digest(),
        }
        return self.chip.report(patches, **{**bound, **changes})

    def evidence(
        self,
        report: bytes | None = None,
        endorsement: SnpEndorsement | None = None,
        challenge: Challenge | None = None,
        claims: Mapping[str, Any] = CLAIMS,
        app_compose: str = COMPOSE,
    ) -> Evidence:
        challenge = challenge or self.challenge()
        return assemble(
            quote=report or self.report(challenge, claims=claims),
            event_log=(),
            app_compose=app_compose,
            spki=self.bench.spki,
            claims=claims,
            challenge=challenge,
            collateral=endorsement or self.chip.endorsement(),
        )


def with_gpu(
    benches: Benches,
    token: Callable[[bytes], Any],
    *,
    switches: Callable[[bytes], Any] | None = None,
    keys: Mapping[str, list[str]] | None = None,
    reports: Callable[[bytes], list[dict[str, str]]] | None = None,
    rules: RoleRules | None = None,
    now: int = NOW,
) -> Present:
    """TDX evidence with GPU evidence bound in its claims; tokens and reports are made for its GPU nonce."""
    bench = benches.tdx
    challenge = bench.issuer.challenge()
    nonce = binding.gpu_nonce(challenge.nonce, bench.spki)
    gpu = {
        "v": 1,
        "vendor": "nvidia",
        "token": token(nonce),
        "switch_token": None if switches is None else switches(nonce),
        "keys": benches.gpu.keys if keys is None else keys,
        "reports": [] if reports is None else reports(nonce),
    }
    digest = hashlib.sha256(jcs.dumps(gpu)).hexdigest()
    claims = {**CLAIMS, "gpu_evidence_sha256": digest}
    good = bench.evidence(claims=claims, challenge=challenge)
    document = edited(good, lambda value: value.update(gpu_evidence=gpu))
    return presenting(document, rules or gpu_rules(benches), bench.context(now))


def gpu_rules(benches: Benches, **changes: Any) -> RoleRules:
    return replace(benches.tdx.rules(), gpu_required=True, gpu=replace(benches.gpu.rule, **changes))


def good_gpu(benches: Benches, challenge: Challenge) -> GpuEvidence:
    """GPU evidence that answers this challenge under the bench's key."""
    nonce = binding.gpu_nonce(challenge.nonce, benches.tdx.spki)
    bench = benches.gpu
    return bench.evidence(token=bench.nras.attest(bench.posted(nonce), nonce, NOW))
