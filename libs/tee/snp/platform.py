"""Responsible for judging an SEV-SNP guest: what policy states about the technology, and a verified report under it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from libs.tee.device import Device
from libs.tee.eventlog import Event, Identity
from libs.tee.rules import Rule
from libs.tee.snp import certificates, judgement
from libs.tee.snp import report as reports
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
        self._note_stated(report, endorsement, now, note)
        return SnpPlatform(verify(report, endorsement, self.vendor_roots, now), self)

    def _note_stated(self, report: bytes, endorsement: SnpEndorsement, now: int, note: Note) -> None:
        """Note what report and endorsement state, **unverified**."""
        roots, vcek = self.vendor_roots, endorsement.vcek
        note("vendor root, SHA-256", lambda: _sha256(endorsement.ark.der), lambda: tuple(map(_sha256, roots)))
        note(
            "chip of the report, and of the VCEK",
            lambda: reports.parse(report).chip_id.rstrip(b"\0"),
            lambda: certificates.read_vcek(vcek).hwid.rstrip(b"\0"),
        )
        note("signing key", lambda: reports.parse(report).signing_key.name, "VCEK")
        note("VCEK, ASK and ARK hold, unix s", lambda: _dates(endorsement), lambda: f"all at {now}")
        note("CRL holds, unix s", lambda: _crl_dates(endorsement), lambda: f"at {now}")


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
        maximum = self.rules.rule.maximum_crl_age_seconds
        note("age of the CRL, s", now - self.verified.crl_issued_at, lambda: f"{maximum} or less")
        return judgement.judge_tcb(self.verified, self.rules.rule, now)

    def judge_guest(self, note: Note) -> None:
        report, rule = self.verified.report, self.rules.rule
        note("guest policy", report.policy, "no debugging, no migration, and what the rule allows")
        note("migration agent", report.report_id_ma, "none: zeros or ones")
        note("least ABI of the firmware", report.minimum_abi, rule.minimum_abi)
        note("platform", report.platform, rule.required_platform)
        note("VMPL", report.vmpl, rule.vmpls)
        note("key of the ID block, SHA-384", report.id_key_digest, lambda: ("zero: none", *sorted(rule.id_keys)))
        note("author key of the ID block, SHA-384", report.author_key_digest, rule.author_keys)
        note("guest SVN", report.guest_svn, lambda: f"{rule.minimum_guest_svn} or more")
        judgement.judge_guest(report, rule)

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
        note("compared together", measured.__slots__, "the members of one allowed measurement")
        return measured, self.rules.measurements.holds_until(measured, now, note)


def _sha256(der: bytes) -> bytes:
    return hashlib.sha256(der).digest()


def _dates(endorsement: SnpEndorsement) -> tuple[str, ...]:
    fields = [each.fields for each in (endorsement.vcek, endorsement.ask, endorsement.ark)]
    return tuple(
        f"{int(each.not_valid_before_utc.timestamp())} to {int(each.not_valid_after_utc.timestamp())}"
        for each in fields
    )


def _crl_dates(endorsement: SnpEndorsement) -> str:
    crl = endorsement.crl
    if crl is None:
        return "there is none"
    end = "no end" if crl.next_update_utc is None else int(crl.next_update_utc.timestamp())
    return f"{int(crl.last_update_utc.timestamp())} to {end}"
