"""Responsible for proving a foreign dstack peer by its RA-TLS certificate, in the numbered steps of an appraisal.

Only a key is bound, so the handshake MUST prove that the peer holds it, and the certificate's age is all the freshness
there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.tee.claims import GpuEvidenceMissing
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Event, Identity
from libs.tee.judgement import Verdict, judge
from libs.tee.ratls.certificate import RatlsEvidence, read_certificate
from libs.tee.role import RoleRules
from libs.tee.rules import FOREVER
from libs.tee.steps import SILENT, Note, Steps
from libs.tee.verified import VerifiedPlatform


@dataclass(frozen=True, slots=True)
class RatlsContext:
    """What the verifier of a certificate knows beside the rules."""

    # Unix seconds.
    now: int
    # How long ago the certificate may have begun.
    maximum_age_seconds: int
    # The application that is meant; None leaves that to the rules' measurements.
    app_id: bytes | None


def verify_ratls(
    certificate_der: bytes, collateral: Collateral, rules: RoleRules, context: RatlsContext, steps: Steps = SILENT
) -> Verdict:
    """Judge a certificate's evidence, or raise the reason of the first step that refuses.

    The verdict holds no longer than the certificate. Its chain is not verified: nothing here rests on who issued it.
    """
    with steps.step(1) as note:
        evidence = read_certificate(certificate_der)
        note("certificate", f"{len(certificate_der)} bytes", "one form of evidence, well formed")
    verdict = judge(_Presented(evidence, collateral, context), rules, context.now, steps)
    until = min(verdict.valid_until, evidence.not_after, evidence.not_before + context.maximum_age_seconds)
    return Verdict(verdict.platform, verdict.identity, verdict.measurement, until)


@dataclass(frozen=True, slots=True)
class _Presented:
    """A certificate on its way through the steps; see `libs.tee.judgement.Presented`."""

    evidence: RatlsEvidence
    collateral: Collateral
    context: RatlsContext

    @property
    def event_log(self) -> tuple[Event, ...]:
        return self.evidence.event_log

    @property
    def app_compose(self) -> None:
        """A certificate does not carry the text: its measured hash goes to the allow list."""
        return

    def verify_quote(self, rules: RoleRules, now: int, note: Note) -> VerifiedPlatform:
        return rules.verify_quote(self.evidence.quote, self.collateral, now, note)

    def verify_binding(self, report_data: bytes, now: int, note: Note) -> None:
        note("report data", report_data, "SHA-512 over the certificate's key")
        self.evidence.verify_report_data(report_data)
        age = now - self.evidence.not_before
        note("age of the certificate, s", age, f"{self.context.maximum_age_seconds} or less, and still valid")
        self.evidence.verify_age(now, self.context.maximum_age_seconds)

    def verify_gpu(self, rules: RoleRules, now: int, note: Note) -> int:
        if rules.gpu_required:
            raise GpuEvidenceMissing("policy requires a GPU, and a certificate carries no GPU evidence")
        return FOREVER

    def verify_claims(self, rules: RoleRules, identity: Identity, note: Note) -> None:
        note("application id, as measured", identity.app_id, self.context.app_id or "any that the rules allow")
        self.evidence.verify_app_id(identity.app_id, self.context.app_id)
