"""Evidence at the very edge of what is accepted, and until when the verdict then holds.

What is one second or one number further is in the table, or the verdict's own end says it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from libs.tee.rules import AllOf, AnyOf
from libs.tee.snp.report import PolicyFlag, Product
from services.devtee.collateral import CollateralShape
from services.devtee.gpu import HWMODEL, ReportShape
from services.devtee.nras import ABSENT, TokenShape
from tests.fakes import snp_platform
from tests.unit.libs.tee.bad_evidence import (
    gpu_report_rows,
    gpu_rows,
    key_rows,
    parse_rows,
    ratls_rows,
    snp_rows,
    tdx_rows,
)
from tests.unit.libs.tee.bad_evidence.links import Link, leaf
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, gpu_rules, presenting, with_gpu
from tests.unit.libs.tee.bench import DAY, NOW, STRICT_TCB
from tests.unit.libs.tee.ratls.maker import Subject

Make = Callable[[Benches], Present]
_AGE = 30 * DAY
# What collateral is dated back by.
_BACKDATE = 300


def _shaped(now: int = NOW, rule: dict[str, Any] | None = None, **shape: Any) -> Make:
    def make(benches: Benches) -> Present:
        bench = benches.tdx
        shaped = CollateralShape(**{"issued_at": NOW, **shape})
        evidence = bench.evidence(shape=shaped, challenge=bench.issuer.challenge(now))
        return presenting(evidence.document, bench.tcb(**(rule or {})), bench.context(now))

    return make


def _composed(compose: Callable[[tuple[Any, ...]], Any]) -> Make:
    """Two rules of which one holds for an hour, the other for two."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        ages = (2 * 3600, 3600)
        rules = tuple(replace(STRICT_TCB, maximum_collateral_age_seconds=age) for age in ages)
        composed = replace(bench.rules(), tdx=bench.tdx(tcb=compose(rules)))
        return presenting(bench.evidence().document, composed, bench.context())

    return make


def _challenged(issued_at: int) -> Make:
    def make(benches: Benches) -> Present:
        bench = benches.tdx
        evidence = bench.evidence(challenge=bench.issuer.challenge(issued_at))
        return presenting(evidence.document, bench.rules(), bench.context())

    return make


def _tokens(overall: dict[str, Any] | None = None, **device: Any) -> Make:
    shape = TokenShape(overall=overall or {}, devices=device)
    return lambda b: with_gpu(b, lambda nonce: gpu_rows.bundle(b.gpu, nonce, shape), rules=gpu_rules(b))


def _guest(rule: dict[str, Any], product: Product = Product.MILAN, **report: Any) -> Make:
    """An SEV-SNP guest whose report says more than usual, before a rule that accepts it."""

    def make(benches: Benches) -> Present:
        one = replace(snp_rows.case(benches), chip=snp_platform.chip(product))
        challenge = one.challenge()
        evidence = one.evidence(one.report(challenge, **report), challenge=challenge)
        return presenting(evidence.document, one.rules(one.rule(**rule)), one.context())

    return make


def _listed_gpus(benches: Benches) -> Present:
    """GPUs that policy lists by identity and model, with the reports that it asks for."""
    gpus = benches.gpu.gpus
    return with_gpu(
        benches,
        lambda nonce: gpu_rows.bundle(benches.gpu, nonce),
        reports=lambda nonce: gpu_report_rows.own_reports(benches.gpu, nonce, ReportShape()),
        rules=gpu_rules(
            benches,
            allowed_ueids=frozenset(gpu.ueid for gpu in gpus),
            allowed_models=frozenset({HWMODEL}),
            reports_required=True,
        ),
    )


def _snp(now: int = snp_platform.NOW, age: int = 2 * snp_platform.DAY, **made: dict[str, Any]) -> Make:
    """An SEV-SNP guest at another time, its certificates and CRL with other dates."""

    def make(benches: Benches) -> Present:
        one = replace(snp_rows.case(benches), now=now)
        ders = {name: getattr(one.chip, name)(**changes) for name, changes in made.items()}
        endorsement = one.chip.endorsement(**ders)
        roots = (ders["ark"],) if "ark" in ders else None
        rules = one.rules(one.rule(maximum_crl_age_seconds=age), roots)
        return presenting(one.evidence(endorsement=endorsement).document, rules, one.context())

    return make


def _certificate(now: int = NOW, maximum_age_seconds: int = 2 * DAY, **dates: Any) -> Make:
    def make(benches: Benches) -> Present:
        subject = Subject.create()
        issued = subject.certificate([ratls_rows.good(benches.tdx, subject)], **dates)
        context = replace(ratls_rows.CONTEXT, now=now, issued=ratls_rows.issued_by("App CA", maximum_age_seconds))
        return ratls_rows.presenting(issued, benches.tdx, context=context)

    return make


def _ends_early(said: dict[str, Any]) -> None:
    said["nextUpdate"] = datetime.fromtimestamp(NOW + 5 * DAY, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_SNP_NOW = snp_platform.NOW
_CRL_START = _SNP_NOW - snp_platform.DAY
# As long as the CRL of a good endorsement counts.
_SNP_DAYS = _CRL_START + 2 * snp_platform.DAY
_TLS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])

EDGES: dict[str, tuple[int | None, Make]] = {
    "collateral as old as policy accepts": (
        NOW + _AGE - _BACKDATE,
        _shaped(NOW + _AGE - _BACKDATE, validity_seconds=365 * DAY),
    ),
    "collateral that ends before it is too old": (NOW + 5 * DAY - 1, _shaped(validity_seconds=5 * DAY)),
    "QE identity that ends first": (NOW + 5 * DAY - 1, tdx_rows.stating(_ends_early, "qe_identity")),
    "TCB info that ends first": (NOW + 5 * DAY - 1, tdx_rows.stating(_ends_early)),
    "last second of grace": (
        NOW,
        _shaped(
            rule={"statuses": frozenset({"OutOfDate"}), "grace_seconds": 10 * DAY},
            tcb_status="OutOfDate",
            tcb_date=NOW - 10 * DAY,
        ),
    ),
    "least evaluation number": (NOW + _AGE - _BACKDATE, _shaped(rule={"minimum_evaluation_number": 17})),
    "both of two rules": (NOW - _BACKDATE + 3600, _composed(AllOf)),
    "either of two rules": (NOW - _BACKDATE + 7200, _composed(AnyOf)),
    "challenge as old as policy accepts": (NOW + _AGE - _BACKDATE, _challenged(NOW - 300)),
    "challenge as far ahead as clocks may differ": (NOW + _AGE - _BACKDATE, _challenged(NOW + 60)),
    "token as old as policy accepts": (NOW, _tokens({"iat": NOW - 600}, iat=NOW - 600)),
    "token of the service's clock, a minute ahead": (NOW + 600, _tokens({"iat": NOW + 60}, nbf=NOW + 60)),
    "overall token that ends first": (NOW + 99, _tokens({"exp": NOW + 100})),
    "GPUs' tokens that end first": (NOW + 99, _tokens(exp=NOW + 100)),
    "NVSwitches' token that ends first": (
        NOW + 99,
        gpu_rows.switched(TokenShape(switches=("77",), overall={"exp": NOW + 100})),
    ),
    "certificate of the token's key that ends first": (
        NOW + 50,
        key_rows.certified(lambda: [leaf(end=NOW + 50), Link(path_length=0), Link()]),
    ),
    "certificate of the token's key in its last second": (
        NOW,
        key_rows.certified(lambda: [leaf(end=NOW), Link(), Link()]),
    ),
    "certificate of the token's key in its first second": (
        NOW + 600,
        key_rows.certified(lambda: [leaf(start=NOW), Link(), Link()]),
    ),
    "token key's chain with as many authorities as they allow": (NOW + 600, key_rows.good_chain),
    "GPU's chain with as many authorities as they allow": (NOW + 600, gpu_report_rows.good_chain),
    "certificate of the token's key that says it is no authority": (
        NOW + 600,
        key_rows.certified(lambda: [leaf(ca=False), Link(), Link()]),
    ),
    "certificate of the token's key for what TLS keys are for": (
        NOW + 600,
        key_rows.certified(lambda: [leaf(extensions=[(_TLS, False)]), Link(), Link()]),
    ),
    "GPUs that are listed, with their reports": (NOW + 600, _listed_gpus),
    "key set with the key's certificates": (None, parse_rows.good_key_set()),
    "key set without certificates": (None, parse_rows.good_key_set(x5c=ABSENT)),
    "log compressed": (NOW + DAY, ratls_rows.legacy_form),
    "guest of another product": (_SNP_DAYS, _guest({}, Product.TURIN)),
    "report of version 2": (_SNP_DAYS, _guest({}, version=2)),
    "guest with a listed ID key": (
        _SNP_DAYS,
        _guest({"id_keys": frozenset({"01" * 48})}, id_key_digest=b"\1" * 48),
    ),
    "guest with a listed author key": (
        _SNP_DAYS,
        _guest({"author_keys": frozenset({"01" * 48})}, key_info=1, author_key_digest=b"\1" * 48),
    ),
    "guest that may share its cores": (
        _SNP_DAYS,
        _guest({"allow_smt": True}, policy=snp_rows.flags(PolicyFlag.SMT_ALLOWED)),
    ),
    "guest whose memory may lie behind CXL": (
        _SNP_DAYS,
        _guest({"allow_cxl": True}, policy=snp_rows.flags(PolicyFlag.CXL_ALLOWED)),
    ),
    "guest that may run on several sockets": (
        _SNP_DAYS,
        _guest({"require_single_socket": False}, policy=snp_platform.policy()),
    ),
    "VCEK that says it is no authority": (
        _SNP_DAYS,
        _snp(vcek={"odd": (x509.BasicConstraints(ca=False, path_length=None),)}),
    ),
    "CRL that is too old first": (_CRL_START + 2 * snp_platform.DAY, _snp()),
    "CRL as old as policy accepts": (_SNP_NOW, _snp(age=snp_platform.DAY)),
    "CRL that ends first": (_SNP_NOW + 99, _snp(crl={"end": _SNP_NOW + 100})),
    "CRL in its first second": (_SNP_NOW + 2 * snp_platform.DAY, _snp(crl={"start": _SNP_NOW})),
    "ARK in its last second": (_SNP_NOW, _snp(ark={"end": _SNP_NOW})),
    "ASK that ends first": (_SNP_NOW + 50, _snp(ask={"end": _SNP_NOW + 50})),
    "VCEK in its first second": (_CRL_START + 2 * snp_platform.DAY, _snp(vcek={"start": _SNP_NOW})),
    "dstack certificate that ends first": (NOW + 100, _certificate(not_after=NOW + 100)),
    "dstack certificate that is too old first": (NOW, _certificate(not_before=NOW - DAY, maximum_age_seconds=DAY)),
    "dstack certificate in its first second": (NOW + DAY, _certificate(not_before=NOW)),
    "dstack certificate in its last second": (NOW, _certificate(not_after=NOW)),
}
"""By what is at its edge: the last second of the verdict, where it has one, and the evidence."""
