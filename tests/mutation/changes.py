"""Mutants beside the raised refusals: a table of checks without one entry, a comparison or bound that is weaker."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from libs.tee import tdx
from libs.tee.nvidia import claims
from tests.mutation.run import Mutant
from tests.mutation.sites import Source, rewritten
from tests.mutation.trial import Baseline

TABLE_ENTRY, WEAKENED = "table entry", "weakened"


def entry_mutants(rows: Sequence[Baseline]) -> list[Mutant]:
    """Every entry of the tables that checks are driven by; the words of its rows name the entry."""
    fragments = [fragment for fragment, _ in tdx._NAMED_REFUSALS]
    mutants = [
        _entry(
            f"tdx._NAMED_REFUSALS: {fragment}",
            (tdx, "_NAMED_REFUSALS", number),
            [row for row in rows if _first_in(fragments, row) == fragment],
        )
        for number, fragment in enumerate(fragments)
    ]
    for name, kind in (("_GPU", claims._GPU), ("_SWITCH", claims._SWITCH)):
        for number, (end, _) in enumerate(kind.must_hold):
            stated = f"does not state {kind.prefix}{end}"
            named = [row for row in rows if row.words.endswith(stated)]
            mutants.append(_entry(f"nvidia.claims.{name}.must_hold: {end}", (kind, "must_hold", number), named))
        device = "SWITCH-" if name == "_SWITCH" else "GPU-"
        for number, end in enumerate(kind.chains):
            named = [row for row in rows if row.words.startswith(device) and f": {end}: " in row.words]
            mutants.append(_entry(f"nvidia.claims.{name}.chains: {end}", (kind, "chains", number), named))
    return mutants


def _first_in(fragments: Sequence[str], row: Baseline) -> str | None:
    """Which entry named this row's refusal, where one of them did."""
    if not any(site.function == "verify" and site.module == tdx.__name__ for site in row.decisive):
        return None
    return next((fragment for fragment in fragments if fragment in row.words), None)


def _entry(name: str, place: tuple[Any, str, int], rows: Sequence[Baseline]) -> Mutant:
    return Mutant(name, TABLE_ENTRY, lambda: _entry_taken_out(*place), rows, rows)


@contextmanager
def _entry_taken_out(holder: Any, name: str, number: int) -> Iterator[None]:
    before = getattr(holder, name)
    _put(holder, name, before[:number] + before[number + 1 :])
    try:
        yield
    finally:
        _put(holder, name, before)


def _put(holder: Any, name: str, value: object) -> None:
    if isinstance(holder, ModuleType):
        vars(holder)[name] = value
    else:
        object.__setattr__(holder, name, value)  # A frozen value.


@dataclass(frozen=True, slots=True)
class Weakening:
    """One expression of one function, and what stands there in the mutant."""

    module: str
    function: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.module}.{self.function}: {self.before}  ->  {self.after}"


WEAKENINGS = [
    Weakening(
        "judgement", "judge", "min(tcb_until, measurement_until, device_until, gpu_until)", "max(tcb_until, gpu_until)"
    ),
    Weakening("judgement", "judge", "min(tcb_until, measurement_until, device_until, gpu_until)", "tcb_until"),
    Weakening("judgement", "judge", "min(tcb_until, measurement_until, device_until, gpu_until)", "gpu_until"),
    Weakening("tcb", "TcbRule.holds_until", "now > end_of_age", "now >= end_of_age"),
    Weakening(
        "tcb",
        "TcbRule.holds_until",
        "facts.evaluation_number < self.minimum_evaluation_number",
        "facts.evaluation_number <= self.minimum_evaluation_number",
    ),
    Weakening(
        "tcb",
        "TcbRule.holds_until",
        "facts.evaluation_number < self.minimum_evaluation_number",
        "facts.evaluation_number + 1 < self.minimum_evaluation_number",
    ),
    Weakening("tcb", "TcbRule.holds_until", "min(end_of_age, end_of_grace, facts.valid_until)", "facts.valid_until"),
    Weakening("tcb", "TcbRule.holds_until", "min(end_of_age, end_of_grace, facts.valid_until)", "end_of_age"),
    Weakening("tcb", "TcbRule.holds_until", "facts.advisories & self.refused_advisories", "frozenset()"),
    Weakening("tcb", "TcbRule._end_of_grace", "end < now", "end <= now"),
    Weakening("tcb", "TcbRule._end_of_grace", "min(dates)", "max(dates)"),
    Weakening("tcb", "TcbRule._end_of_grace", "self.grace_seconds", "2 * self.grace_seconds"),
    Weakening(
        "tdx",
        "_verified",
        "min(tcb['eval_data_number'], enclave['tcb_eval_data_number'])",
        "enclave['tcb_eval_data_number']",
    ),
    Weakening(
        "tdx",
        "_verified",
        "min(claims['earliest_expiration_date'], claims['qe_iden_earliest_expiration_date']) - 1",
        "min(claims['earliest_expiration_date'], claims['qe_iden_earliest_expiration_date'])",
    ),
    Weakening(
        "rules",
        "AllOf.holds_until",
        "min((rule.holds_until(facts, now, note) for rule in self.rules))",
        "max((rule.holds_until(facts, now, note) for rule in self.rules))",
    ),
    Weakening("rules", "AnyOf.holds_until", "max(ends)", "min(ends)"),
    Weakening("eventlog", "verify_replay", "range(RUNTIME_REGISTER)", "range(1, RUNTIME_REGISTER)"),
    Weakening("eventlog", "verify_replay", "range(RUNTIME_REGISTER)", "range(RUNTIME_REGISTER - 1)"),
    Weakening(
        "challenge",
        "Challenge.verify_signed",
        "self.issued_at > now + CLOCK_SKEW_SECONDS",
        "self.issued_at >= now + CLOCK_SKEW_SECONDS",
    ),
    Weakening(
        "challenge",
        "Challenge.verify_signed",
        "self.issued_at > now + CLOCK_SKEW_SECONDS",
        "self.issued_at > now + 2 * CLOCK_SKEW_SECONDS",
    ),
    Weakening(
        "challenge",
        "Challenge.verify_signed",
        "now - self.issued_at > max_age_seconds",
        "now - self.issued_at >= max_age_seconds",
    ),
    Weakening(
        "challenge",
        "Challenge.verify_signed",
        "now - self.issued_at > max_age_seconds",
        "now - self.issued_at > max_age_seconds + 1",
    ),
    Weakening("binding", "report_data", "hashlib.sha256(spki_der).digest()", "b''"),
    Weakening("binding", "report_data", "hashlib.sha256(jcs.dumps(claims)).digest()", "b''"),
    Weakening("binding", "gpu_nonce", "hashlib.sha256(spki_der).digest()", "b''"),
    Weakening("snp.report", "Tcb.reaches", "self.bootloader >= minimum.bootloader", "True"),
    Weakening("snp.report", "Tcb.reaches", "self.tee >= minimum.tee", "True"),
    Weakening("snp.report", "Tcb.reaches", "self.snp >= minimum.snp", "True"),
    Weakening("snp.report", "Tcb.reaches", "self.microcode >= minimum.microcode", "True"),
    Weakening("snp.report", "Tcb.reaches", "(self.fmc or 0) >= (minimum.fmc or 0)", "True"),
    Weakening("snp.report", "Tcb.reaches", "self.snp >= minimum.snp", "self.snp > minimum.snp"),
    Weakening(
        "snp.judgement",
        "judge_tcb",
        "now - verified.crl_issued_at > rule.maximum_crl_age_seconds",
        "now - verified.crl_issued_at >= rule.maximum_crl_age_seconds",
    ),
    Weakening(
        "snp.judgement",
        "judge_tcb",
        "min(verified.valid_until, verified.crl_issued_at + rule.maximum_crl_age_seconds)",
        "verified.valid_until",
    ),
    Weakening(
        "snp.judgement",
        "judge_tcb",
        "min(verified.valid_until, verified.crl_issued_at + rule.maximum_crl_age_seconds)",
        "verified.crl_issued_at + rule.maximum_crl_age_seconds",
    ),
    Weakening(
        "snp.judgement",
        "_judge_policy",
        "report.minimum_abi < rule.minimum_abi",
        "report.minimum_abi <= rule.minimum_abi",
    ),
    Weakening("snp.verification", "verify", "min(chain.valid_until, revocation.valid_until)", "chain.valid_until"),
    Weakening("snp.verification", "verify", "min(chain.valid_until, revocation.valid_until)", "revocation.valid_until"),
    Weakening("snp.chain", "verify_chain", "(ark, ask, vcek)", "(ark, vcek)"),
    Weakening("snp.chain", "_valid_until", "start <= now <= end", "start < now <= end"),
    Weakening("snp.chain", "_valid_until", "start <= now <= end", "start <= now < end"),
    Weakening("snp.chain", "verify_revocation", "(chain.ask, chain.ark)", "(chain.ask,)"),
    Weakening("snp.chain", "verify_revocation", "(chain.ask, chain.ark)", "(chain.ark,)"),
    Weakening(
        "snp.chain",
        "verify_revocation",
        "issued_at <= now < (end := int(crl.next_update_utc.timestamp()))",
        "issued_at <= now <= (end := int(crl.next_update_utc.timestamp()))",
    ),
    Weakening(
        "snp.chain",
        "verify_revocation",
        "issued_at <= now < (end := int(crl.next_update_utc.timestamp()))",
        "issued_at < now < (end := int(crl.next_update_utc.timestamp()))",
    ),
    Weakening("nvidia.token", "_judge_times", "now >= expires_at", "now > expires_at"),
    Weakening(
        "nvidia.token",
        "_judge_times",
        "now - issued_at > maximum_age_seconds",
        "now - issued_at >= maximum_age_seconds",
    ),
    Weakening(
        "nvidia.token",
        "_judge_times",
        "now - issued_at > maximum_age_seconds",
        "now - issued_at > maximum_age_seconds + 1",
    ),
    Weakening("nvidia.token", "_judge_times", "max(issued_at, not_before)", "issued_at"),
    Weakening("nvidia.token", "_judge_times", "max(issued_at, not_before)", "not_before"),
    Weakening(
        "nvidia.token",
        "_judge_times",
        "max(issued_at, not_before) > now + CLOCK_SKEW_SECONDS",
        "max(issued_at, not_before) >= now + CLOCK_SKEW_SECONDS",
    ),
    Weakening("nvidia.token", "_judge_times", "min(expires_at - 1, issued_at + maximum_age_seconds)", "expires_at - 1"),
    Weakening(
        "nvidia.token",
        "_judge_times",
        "min(expires_at - 1, issued_at + maximum_age_seconds)",
        "issued_at + maximum_age_seconds",
    ),
    Weakening("nvidia.token", "verify_bundle", "min(ends)", "max(ends)"),
    Weakening(
        "nvidia.keys",
        "verify_key_chain",
        "min((int(each.not_valid_after_utc.timestamp()) for each in path))",
        "max((int(each.not_valid_after_utc.timestamp()) for each in path))",
    ),
    Weakening(
        "nvidia.chain",
        "are_current",
        "each.not_valid_before_utc <= moment <= each.not_valid_after_utc",
        "each.not_valid_before_utc < moment <= each.not_valid_after_utc",
    ),
    Weakening(
        "nvidia.chain",
        "are_current",
        "each.not_valid_before_utc <= moment <= each.not_valid_after_utc",
        "each.not_valid_before_utc <= moment < each.not_valid_after_utc",
    ),
    Weakening(
        "nvidia.chain",
        "_verify_link",
        "constraints.path_length < authorities_between",
        "constraints.path_length <= authorities_between",
    ),
    Weakening(
        "nvidia.chain",
        "_verify_link",
        "constraints.path_length < authorities_between",
        "constraints.path_length + 1 < authorities_between",
    ),
    Weakening(
        "nvidia.evidence", "verify_gpu_evidence", "min((bundle.valid_until for bundle in bundles))", "eat.valid_until"
    ),
    Weakening(
        "ratls.certificate",
        "RatlsEvidence.verify_age",
        "self.not_before <= now <= self.not_after",
        "self.not_before < now <= self.not_after",
    ),
    Weakening(
        "ratls.certificate",
        "RatlsEvidence.verify_age",
        "self.not_before <= now <= self.not_after",
        "self.not_before <= now < self.not_after",
    ),
    Weakening(
        "ratls.certificate",
        "RatlsEvidence.verify_age",
        "now - self.not_before > maximum_age_seconds",
        "now - self.not_before >= maximum_age_seconds",
    ),
    Weakening(
        "ratls.verification",
        "verify_ratls",
        "min(verdict.valid_until, evidence.not_after, evidence.not_before + context.issued.maximum_age_seconds)",
        "min(verdict.valid_until, evidence.not_after)",
    ),
    Weakening(
        "ratls.verification",
        "verify_ratls",
        "min(verdict.valid_until, evidence.not_after, evidence.not_before + context.issued.maximum_age_seconds)",
        "min(verdict.valid_until, evidence.not_before + context.issued.maximum_age_seconds)",
    ),
]


def weakened_mutants(sources: Mapping[str, Source], rows: Sequence[Baseline]) -> list[Mutant]:
    """No row says beforehand that it rests on such an expression: at least one of them has to."""
    return [
        Mutant(
            weakening.name,
            WEAKENED,
            lambda weakening=weakening: _weakened(sources, weakening),  # type: ignore[misc]
            decisive=(),
            reaching=[row for row in rows if row.entered(f"libs.tee.{weakening.module}", weakening.function)],
        )
        for weakening in WEAKENINGS
    ]


def _weakened(sources: Mapping[str, Source], weakening: Weakening) -> AbstractContextManager[None]:
    name = f"libs.tee.{weakening.module}"
    # A formula's module holds no checks of its own.
    source = sources[name] if name in sources else Source.of(importlib.import_module(name))
    return rewritten(source, weakening.function, Weaken(weakening))


class Weaken(ast.NodeTransformer):
    """Puts the other expression in the place of the one, inside of one function."""

    def __init__(self, weakening: Weakening) -> None:
        self._scope: list[str] = []
        self._weakening = weakening
        self.times = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._scope.append(node.name)
            self.generic_visit(node)
            self._scope.pop()
            return node
        weakening = self._weakening
        here = ".".join(self._scope) == weakening.function
        read = isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store)
        if here and read and ast.unparse(node) == weakening.before:
            self.times += 1
            return ast.copy_location(ast.parse(weakening.after, mode="eval").body, node)
        visited = self.generic_visit(node)
        if isinstance(node, ast.Module) and self.times != 1:
            raise LookupError(f"{self.times} places for {weakening.name}")
        return visited
