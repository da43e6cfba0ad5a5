"""The whole table, and the good evidence that its rows are made from."""

from __future__ import annotations

from collections.abc import Callable

from services.devtee.gpu import ReportShape
from services.devtee.nras import TokenShape
from tests.unit.libs.tee.bad_evidence import (
    document_rows,
    gpu_report_rows,
    gpu_rows,
    key_rows,
    parse_rows,
    ratls_rows,
    snp_rows,
    tcb_signer_rows,
    tdx_rows,
)
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, gpu_rules, presenting, with_gpu
from tests.unit.libs.tee.bench import NOW
from tests.unit.libs.tee.ratls.maker import Subject

TABLE: tuple[Row, ...] = (
    *parse_rows.ROWS,
    *tdx_rows.ROWS,
    *tcb_signer_rows.ROWS,
    *document_rows.ROWS,
    *gpu_rows.ROWS,
    *key_rows.ROWS,
    *gpu_report_rows.ROWS,
    *snp_rows.ROWS,
    *ratls_rows.ROWS,
)


def _tdx(benches: Benches) -> Present:
    return presenting(benches.tdx.evidence().document, benches.tdx.rules(), benches.tdx.context())


def _snp(benches: Benches) -> Present:
    one = snp_rows.case(benches)
    return presenting(one.evidence().document, one.rules(), one.context())


def _gpu(benches: Benches) -> Present:
    """Two GPUs with their own reports, and an NVSwitch."""
    return with_gpu(
        benches,
        lambda nonce: gpu_rows.bundle(benches.gpu, nonce),
        switches=lambda nonce: benches.gpu.nras.attest([], nonce, NOW, TokenShape(switches=("77",))),
        reports=lambda nonce: gpu_report_rows.own_reports(benches.gpu, nonce, ReportShape()),
        rules=gpu_rules(benches, reports_required=True),
    )


def _ratls(benches: Benches) -> Present:
    subject = Subject.create()
    return ratls_rows.presenting(subject.certificate([ratls_rows.good(benches.tdx, subject)]), benches.tdx)


UNALTERED: dict[str, Callable[[Benches], Present]] = {
    "TDX": _tdx,
    "TDX, quote of version 5": tdx_rows.version_5(bytes(48)),
    "TDX, launched for its application": document_rows.launched_by_application,
    "SEV-SNP": _snp,
    "TDX with GPUs": _gpu,
    "dstack certificate": _ratls,
    "dstack certificate of the second form": ratls_rows.second_form,
    "dstack certificate of the legacy form": ratls_rows.legacy_form,
    "token keys of our making": key_rows.good_chain,
    "GPU chain of our making": gpu_report_rows.good_chain,
}
"""What the rows change one thing of. Each passes every step."""
