"""Responsible for the cost of appraising evidence, beside the quote verification that it cannot do without."""

from __future__ import annotations

import dcap_qvl

from libs import jcs
from libs.tee import evidence as evidences
from libs.tee.appraisal import appraise
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Limit, side_by_side
from tests.unit.libs.tee.bench import NOW, Bench


def verification_alone(bench: Bench, document: bytes) -> Action:
    """`dcap_qvl` on the same quote and collateral, both parsed before."""
    parsed = evidences.parse(document)
    verifier = dcap_qvl.QuoteVerifier(bench.machine.vendor_root)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(jcs.dumps(parsed.collateral.to_json()).decode())
    policy = dcap_qvl.QuotePolicy.claims_only(NOW)

    async def act() -> None:
        verifier.verify_with_policy(parsed.quote, collateral, NOW, policy)

    return act


def parsing(document: bytes) -> Action:
    async def act() -> None:
        evidences.parse(document)

    return act


def appraisal(bench: Bench, document: bytes) -> Action:
    """All of it, from the bytes to the verdict."""
    rules, context = bench.rules(), bench.context()

    async def act() -> None:
        appraise(evidences.parse(document), rules, context)

    return act


async def measure(*, seconds: float) -> Section:
    bench = Bench.create()
    document = bench.evidence().document
    base, parsed, whole = await side_by_side(
        [verification_alone(bench, document), parsing(document), appraisal(bench, document)],
        Limit(count=2000, seconds=seconds, in_a_row=20),
    )
    return Section(
        "appraisal",
        "dcap_qvl's verification of quote and collateral alone",
        "as named",
        [Row("parse", base, parsed), Row("parse and appraise", base, whole)],
        [f"evidence document of {len(document)} bytes, software TEE"],
    )
