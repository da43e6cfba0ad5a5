"""Responsible for the router's identity (ACI §9.1): hardware, binding, freshness, expiry, provenance, custody, channel.

Provenance rests on measured evidence alone: the app-compose that was measured names the image, and policy lists its
hash. What the report says of its source is a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.aci import downstream
from libs.aci import report as reports
from libs.aci.encoding import Members
from libs.aci.keyset import Keyset, TlsKey, verify_usable
from libs.aci.report import Report
from libs.client.trust import ROUTER_ROLE
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.tee import eventlog, shape, tdx
from libs.tee.claims import GpuEvidenceMissing
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Identity
from libs.tee.judgement import Verdict, judge
from libs.tee.role import RoleRules
from libs.tee.rules import FOREVER
from libs.tee.steps import Note
from libs.tee.verified import VerifiedPlatform

LONGEST_KEYSET_SECONDS = 31 * 86400
_IN_TEE = "in-tee"


class ReportEvidenceMalformed(MeshError):
    """The report's evidence is not of the form that this client can judge."""

    code = Code.INVALID_ARGUMENT
    reason = "REPORT_EVIDENCE_MALFORMED"


class SubjectNotAccepted(MeshError):
    """The keyset names itself as something else than a router of this mesh."""

    code = Code.PERMISSION_DENIED
    reason = "SUBJECT_NOT_ACCEPTED"


class CustodyNotStated(MeshError):
    """The measured code does not say that it holds the private half of every key in the keyset."""

    code = Code.PERMISSION_DENIED
    reason = "CUSTODY_NOT_STATED"


class TlsKeyNotAttested(MeshError):
    """The connection ends in another key than the attested ones, so perhaps outside the TEE."""

    code = Code.PERMISSION_DENIED
    reason = "TLS_KEY_NOT_ATTESTED"


@dataclass(frozen=True, slots=True)
class Established:
    """A service of whichever mesh that passed: its keys, the machine and code behind them, and whether it says that it
    serves by itself.
    """

    keyset: Keyset
    verdict: Verdict
    serving: str
    named: TlsKey | None = None
    """The TLS key that clients of the report's host pin, where the report names one."""

    def pins(self, host: str) -> frozenset[str]:
        return downstream.pins(self.keyset, self.named, host)


@dataclass(frozen=True, slots=True)
class Attested:
    """A router that passed: its keys, and the machine and code behind them."""

    keyset: Keyset
    verdict: Verdict
    policy: Policy
    named: TlsKey | None = None
    """The TLS key that clients of the report's host pin, where the report names one."""

    def pins(self, host: str) -> frozenset[str]:
        return downstream.pins(self.keyset, self.named, host)

    @property
    def summary(self) -> str:
        measured = self.verdict.measurement.compose_hash[:16]
        status = self.verdict.platform.tcb.status
        return f"TDX, TCB {status}, compose {measured}..., keyset {self.keyset.digest[7:23]}..."


def verify_report(document: bytes, nonce: str, policy: Policy, now: int) -> Attested:
    """Return what a report proves about a router. `nonce` MUST be the caller's own and fresh.

    Raises the reason of the first step that refuses. Says nothing about any connection: see `verify_channel`.
    """
    established = establish(document, nonce, policy.rules(ROUTER_ROLE), now)
    subject = established.keyset.subject
    if subject is not None and not subject.startswith(f"spiffe://{policy.trust_domain}/{ROUTER_ROLE}/"):
        raise SubjectNotAccepted(f"the keyset's subject is not a router of {policy.trust_domain}")
    return Attested(established.keyset, established.verdict, policy, established.named)


def establish(
    document: bytes, nonce: str, rules: RoleRules, now: int, *, collateral: Collateral | None = None
) -> Established:
    """Return what a report proves about any ACI service. `nonce` MUST be the caller's own and fresh.

    `collateral` serves where the report brings none. Says nothing about the keyset's subject, nor any connection.
    """
    report = reports.parse(document)
    reports.verify_report_binding(report, nonce)
    verify_usable(report.keyset, now=now, longest_seconds=LONGEST_KEYSET_SECONDS)
    verdict = judge(_Presented(report, collateral), rules, now)
    return Established(report.keyset, verdict, report.serving, downstream.read(report.evidence))


def quote_without_collateral(document: bytes) -> bytes | None:
    """Return the quote, not verified, whose collateral has to be fetched; None where the report brings it."""
    members = Members(reports.parse(document).evidence, "evidence", ReportEvidenceMalformed)
    if members.has("collateral"):
        return None
    try:
        return tdx.cut(shape.binary(members.text("quote"), "quote"))
    except ValueError as error:
        raise ReportEvidenceMalformed(str(error)) from error


def verify_channel(attested: Attested, host: str, spki_sha256: str) -> None:
    """Accept a connection to `host` whose server proved this key. Raises `TlsKeyNotAttested`."""
    if spki_sha256 not in attested.pins(host):
        raise TlsKeyNotAttested("the report has no such TLS key for this host: the connection ends elsewhere")


class _Presented:
    """A report on its way through the steps of an appraisal; see `libs.tee.judgement.Presented`."""

    def __init__(self, report: Report, collateral: Collateral | None) -> None:
        if report.tee_type != "tdx":
            raise ReportEvidenceMalformed("only tdx evidence is understood")
        self._report = report
        members = Members(report.evidence, "evidence", ReportEvidenceMalformed)
        try:
            self._quote = tdx.cut(shape.binary(members.text("quote"), "quote"))
            self._stated_slot = shape.binary(members.text("quote_report_data"), "quote_report_data", 64)
            event_log = shape.text(members.text("event_log"), "event_log")
            self.app_compose = shape.text(members.text("app_compose"), "app_compose")
        except ValueError as error:
            raise ReportEvidenceMalformed(str(error)) from error
        self.event_log = eventlog.parse(jcs.loads(event_log.encode()))
        if collateral is None or members.has("collateral"):
            collateral = Collateral.parse(members.mapping("collateral"))
        self._collateral = collateral

    def verify_quote(self, rules: RoleRules, now: int, note: Note) -> VerifiedPlatform:
        return rules.verify_quote(self._quote, self._collateral, now, note)

    def verify_binding(self, report_data: bytes, now: int, note: Note) -> None:
        reports.verify_slot(self._report, report_data)
        reports.verify_slot(self._report, self._stated_slot)

    def verify_gpu(self, rules: RoleRules, now: int, note: Note) -> int:
        """A router serves no model itself: what answers is cited by its receipts."""
        if rules.gpu_required:
            raise GpuEvidenceMissing("policy requires a GPU of routers, and a report carries no GPU evidence")
        return FOREVER

    def verify_claims(self, rules: RoleRules, identity: Identity, note: Note) -> None:
        """The measured code's word on who holds the private keys counts only now that policy accepts that code."""
        _verify_custody(Members(self._report.evidence, "evidence", ReportEvidenceMalformed), self._report.keyset)


def _verify_custody(evidence: Members, keyset: Keyset) -> None:
    custody = evidence.object("key_custody")
    if custody.text("provider") != _IN_TEE:
        raise CustodyNotStated("the keys are not held in the TEE that was attested")
    stated = set(custody.items("keys", lambda members: _custody_entry(members.raw())))
    wanted = {("receipt", key.public_key) for key in keyset.receipt_signing_keys}
    wanted |= {("e2ee", key.public_key) for key in keyset.e2ee_public_keys}
    wanted |= {("tls", key.spki_sha256) for key in keyset.tls_public_keys}
    if not wanted <= stated:
        raise CustodyNotStated("the keyset lists a key whose custody is not stated")


def _custody_entry(entry: Mapping[str, Any]) -> tuple[str, str]:
    return str(entry.get("role")), str(entry.get("public_key", entry.get("spki_sha256")))
