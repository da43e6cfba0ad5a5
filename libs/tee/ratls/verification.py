"""Responsible for proving a foreign dstack peer by its RA-TLS certificate, in the numbered steps of an appraisal.

Only a key is bound, so the handshake MUST prove that the peer holds it. The certificate's dates are all the freshness
there is, and count only under a trusted authority: anyone can write another certificate around old evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.tee import binding
from libs.tee.claims import GpuEvidenceMissing
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Event, Identity
from libs.tee.judgement import Verdict, judge
from libs.tee.ratls.certificate import RatlsEvidence, read_certificate, verify_issuer
from libs.tee.role import RoleRules
from libs.tee.rules import FOREVER
from libs.tee.steps import SILENT, Note, Steps
from libs.tee.verified import VerifiedPlatform


@dataclass(frozen=True, slots=True)
class IssuedBy:
    """Who must have issued the certificate itself, and how long ago."""

    # DER: dstack's certificate authority of the application.
    authority: bytes
    maximum_age_seconds: int


@dataclass(frozen=True, slots=True)
class RatlsContext:
    """What the verifier of a certificate knows beside the rules."""

    # Unix seconds.
    now: int
    # None: the evidence may be of any age, as long as its quote verifies now.
    issued: IssuedBy | None
    # The application that is meant; None leaves that to the rules' measurements.
    app_id: bytes | None


def verify_ratls(
    certificate_der: bytes, collateral: Collateral, rules: RoleRules, context: RatlsContext, steps: Steps = SILENT
) -> Verdict:
    """Judge a certificate's evidence, or raise the reason of the first step that refuses.

    Under a trusted authority the verdict holds no longer than the certificate and its accepted age.
    """
    with steps.step(1) as note:
        evidence = read_certificate(certificate_der)
        note("certificate", f"{len(certificate_der)} bytes", "one form of evidence, well formed")
    verdict = judge(_Presented(certificate_der, evidence, collateral, context), rules, context.now, steps)
    if context.issued is None:
        return verdict
    until = min(verdict.valid_until, evidence.not_after, evidence.not_before + context.issued.maximum_age_seconds)
    return Verdict(verdict.platform, verdict.identity, verdict.measurement, until)


@dataclass(frozen=True, slots=True)
class _Presented:
    """A certificate on its way through the steps; see `libs.tee.judgement.Presented`."""

    certificate_der: bytes
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
        note(
            "report data, over the certificate's key",
            report_data,
            lambda: binding.ratls_report_data(self.evidence.spki),
        )
        self.evidence.verify_report_data(report_data)
        if (issued := self.context.issued) is None:
            note("age of the certificate", "not known: no authority is trusted for its dates", "any")
            return
        verify_issuer(self.certificate_der, issued.authority)
        age = now - self.evidence.not_before
        note("age of the certificate, s", age, f"{issued.maximum_age_seconds} or less, and still valid")
        self.evidence.verify_age(now, issued.maximum_age_seconds)

    def verify_gpu(self, rules: RoleRules, now: int, note: Note) -> int:
        note("GPU evidence", None, "some" if rules.gpu_required else "any or none")
        if rules.gpu_required:
            raise GpuEvidenceMissing("policy requires a GPU, and a certificate carries no GPU evidence")
        return FOREVER

    def verify_claims(self, rules: RoleRules, identity: Identity, note: Note) -> None:
        note("application id, as measured", identity.app_id, self.context.app_id or "any that the rules allow")
        self.evidence.verify_app_id(identity.app_id, self.context.app_id)
