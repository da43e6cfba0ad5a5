"""Responsible for judging a TD: what policy states about TDX, and a verified quote under it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from libs.tee import eventlog, tdx
from libs.tee.collateral import Collateral
from libs.tee.config_id import verify_config_id
from libs.tee.device import Device
from libs.tee.eventlog import Event, Identity
from libs.tee.measurement import Measurement
from libs.tee.rules import Rule
from libs.tee.steps import Note
from libs.tee.tcb import TcbStatement
from libs.tee.td import judge_td
from libs.tee.tdx_stated import note_stated
from libs.tee.verified import Tcb

_UP_TO_DATE = "UpToDate"


@dataclass(frozen=True, slots=True)
class TdxRules:
    """What evidence from a TD must satisfy."""

    # DER of the vendors' root certificates.
    vendor_roots: tuple[bytes, ...]
    tcb: Rule[TcbStatement]
    # Accepted TD attributes, exact values, 16 hex characters.
    td_attributes: frozenset[str]
    measurements: Rule[Measurement]

    def verify(self, quote: bytes, collateral: Collateral, now: int, note: Note) -> TdxPlatform:
        """Prove the quote, cut, under one of the roots. Raises what `tdx.verify` raises."""
        note_stated(quote, collateral, self.vendor_roots, now, note)
        return TdxPlatform(tdx.verify(quote, collateral, self.vendor_roots, now), self)


@dataclass(frozen=True, slots=True)
class TdxPlatform:
    """A quote that verified; see `libs.tee.verified.VerifiedPlatform`."""

    quote: tdx.VerifiedQuote
    rules: TdxRules

    @property
    def report_data(self) -> bytes:
        return self.quote.report.report_data

    @property
    def device(self) -> Device:
        return self.quote.device

    @property
    def tcb(self) -> Tcb:
        status = self.quote.tcb_status
        return Tcb(status, tuple(sorted(self.quote.advisories)), up_to_date=status == _UP_TO_DATE)

    @property
    def vendor_root_sha256(self) -> bytes:
        return self.quote.vendor_root_sha256

    def judge_tcb(self, now: int, note: Note) -> int:
        note("last second of the statements, unix s", self.quote.valid_until, lambda: f"{now} or later")
        return self.rules.tcb.holds_until(self.quote, now, note)

    def judge_guest(self, note: Note) -> None:
        judge_td(self.quote.report, self.rules.td_attributes, note)

    def identify(self, event_log: tuple[Event, ...], note: Note) -> Identity:
        eventlog.verify_replay(event_log, self.quote.report.rtmrs, note)
        identity = eventlog.read_identity(event_log)
        config_id = self.quote.report.mr_config_id
        note("configuration id", config_id, "zero, or what states this application")
        verify_config_id(config_id, identity)
        note("compose-hash event", identity.compose_hash, "once, before system-ready")
        note("instance-id event", identity.instance_id, "once, before system-ready")
        return identity

    def judge_measurement(self, identity: Identity, now: int, note: Note) -> tuple[Measurement, int]:
        report = self.quote.report
        measurement = Measurement(
            compose_hash=identity.compose_hash.hex(),
            app_id=identity.app_id.hex(),
            os_image_hash=identity.os_image_hash.hex(),
            key_provider=hashlib.sha256(identity.key_provider).hexdigest(),
            mrtd=report.mrtd.hex(),
            rtmr0=report.rtmrs[0].hex(),
            rtmr1=report.rtmrs[1].hex(),
            rtmr2=report.rtmrs[2].hex(),
        )
        note("compared together", measurement.__slots__, "the members of one allowed measurement")
        return measurement, self.rules.measurements.holds_until(measurement, now, note)
