"""It is responsible for telling the devices that were judged from those that are there now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from libs.tee.nvidia.evidence import RawReport
from libs.tee.nvidia.report import parse_report


@dataclass(frozen=True, slots=True)
class Observed:
    """What was there at one moment. Whatever differs from an earlier moment must be judged anew."""

    devices: frozenset[str]
    """One text for each GPU and NVSwitch: which it is and what runs on it."""
    since: str = ""
    """Another one after anything that may have reset a device or its driver; empty where nobody can tell."""


def observed_in(reports: tuple[RawReport, ...]) -> Observed:
    """Say which GPUs answered, by certificates, firmware and driver. Raises `ReportMalformed`.

    A device that was only reset answers as before: its reports do not tell.
    """
    return Observed(frozenset(map(_described, reports)))


def _described(raw: RawReport) -> str:
    report = parse_report(raw.report)
    device = hashlib.sha256(raw.certificate_chain.encode()).hexdigest()
    return f"{device} driver {report.driver} vbios {report.vbios} fwid {report.fwid.hex()}"
