"""Responsible for judging an SEV-SNP guest: what policy states about the technology, and a verified report under it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from libs.tee.device import Device
from libs.tee.eventlog import Event, Identity
from libs.tee.rules import Rule
from libs.tee.snp import judgement
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.rules import SnpMeasurement, SnpRule
from libs.tee.snp.verification import VerifiedSnpReport, verify
from libs.tee.steps import Note
from libs.tee.verified import Tcb


@dataclass(frozen=True, slots=True)
class SnpRules:
    """What evidence from an SEV-SNP guest must satisfy."""

    # DER of the vendor's root certificates (ARK).
    vendor_roots: tuple[bytes, ...]
    rule: SnpRule
    measurements: Rule[SnpMeasurement]

    def verify(self, report: bytes, endorsement: SnpEndorsement, now: int, note: Note) -> SnpPlatform:
        """Prove the report under one of the roots. Raises what `verification.verify` raises."""
        allowed = [hashlib.sha256(root).digest() for root in self.vendor_roots]
        note("vendor root, SHA-256", hashlib.sha256(endorsement.ark.der).digest(), allowed)
        return SnpPlatform(verify(report, endorsement, self.vendor_roots, now), self)


@dataclass(frozen=True, slots=True)
class SnpPlatform:
    """A report that verified; see `libs.tee.verified.VerifiedPlatform`."""

    verified: VerifiedSnpReport
    rules: SnpRules

    @property
    def report_data(self) -> bytes:
        return self.verified.report.report_data

    @property
    def device(self) -> Device:
        return Device(self.verified.device_id, self.verified.cpu_family.lower())

    @property
    def tcb(self) -> Tcb:
        # AMD publishes no verdict on a level: what reaches policy's minimum is what policy calls up to date.
        level = self.verified.tcbs.reported
        words = f"bootloader {level.bootloader}, TEE {level.tee}, SNP {level.snp}, microcode {level.microcode}"
        return Tcb(words, (), up_to_date=True, vendor_says=False)

    @property
    def vendor_root_sha256(self) -> bytes:
        return self.verified.vendor_root_sha256

    def judge_tcb(self, now: int, note: Note) -> int:
        tcbs = self.verified.tcbs
        minimum = self.rules.rule.minimum_tcb.get(self.verified.product, "not listed")
        for name in tcbs.__slots__:
            note(f"{name} TCB", getattr(tcbs, name), minimum)
        return judgement.judge_tcb(self.verified, self.rules.rule, now)

    def judge_guest(self, note: Note) -> None:
        report = self.verified.report
        note("guest policy", report.policy, "no debugging, no migration, and what the rule allows")
        note("platform", report.platform, self.rules.rule.required_platform)
        note("VMPL", report.vmpl, sorted(self.rules.rule.vmpls))
        judgement.judge_guest(report, self.rules.rule)

    def identify(self, event_log: tuple[Event, ...], note: Note) -> Identity:
        """There are no registers that a boot extends: HOST_DATA names the app-compose, and nothing else is known."""
        note("registers", "none on SEV-SNP", "HOST_DATA holds the compose hash")
        return Identity(
            app_id=b"",
            compose_hash=self.verified.report.host_data,
            instance_id=b"",
            key_provider=b"",
            os_image_hash=b"",
        )

    def judge_measurement(self, identity: Identity, now: int, note: Note) -> tuple[SnpMeasurement, int]:
        measured = judgement.measurement(self.verified.report)
        return measured, self.rules.measurements.holds_until(measured, now, note)
