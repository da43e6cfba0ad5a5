"""Responsible for GPU evidence: the member of an evidence document, policy's rule for it, and the verdict.

The verdict says that these devices answered the same challenge as the CPU did. It never says that they are in the same
machine, or that the CPU's workload uses them: nothing in the evidence could prove that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.nvidia import claims, token
from libs.tee.nvidia.chain import MAX_CHAIN_BYTES
from libs.tee.nvidia.claims import GpuDevice, SwitchDevice
from libs.tee.nvidia.keys import Issuer, KeyChains, Keyring, bounded, read_chains
from libs.tee.nvidia.report import MAX_REPORT_BYTES, VerifiedReport, verify_report
from libs.tee.nvidia.token import DetachedEat, VerifiedEat
from libs.tee.steps import Note, about, ignore

VENDOR = "nvidia"
_VERSION = 1
_MEMBERS = frozenset({"v", "vendor", "token", "switch_token", "keys", "reports"})
_REPORT_MEMBERS = frozenset({"report", "certificate_chain"})
_Device = TypeVar("_Device")


class GpuEvidenceMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "GPU_EVIDENCE_MALFORMED"


class DeviceListedTwice(MeshError):
    """Two devices of one bundle have the same UEID: one device answered twice."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_DEVICE_LISTED_TWICE"


class DeviceRevoked(MeshError):
    """Policy has revoked a device."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_DEVICE_REVOKED"


class GpuDeviceNotAllowed(MeshError):
    """Policy lists GPUs, and this is none of them."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_DEVICE_NOT_ALLOWED"


class GpuModelNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_MODEL_NOT_ALLOWED"


class ReportsRequired(MeshError):
    """Policy asks for the devices' own reports beside the token."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_REPORTS_REQUIRED"


class ReportMissing(MeshError):
    """Some GPUs have a report of their own and this one has none."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_REPORT_MISSING"


class ReportUnmatched(MeshError):
    """A report is of no GPU that the token names, or of one that has a report already."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_REPORT_UNMATCHED"


class ReportDisagrees(MeshError):
    """Token and report name other software for the same device."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_REPORT_DISAGREES"


@dataclass(frozen=True, slots=True)
class RawReport:
    """A device's report and the PEM chain of the key that signed it, leaf first."""

    report: bytes
    certificate_chain: str


@dataclass(frozen=True, slots=True)
class GpuEvidence:
    """Parsed GPU evidence; nothing in it is verified."""

    # About the GPUs.
    eat: DetachedEat
    # About the NVSwitches between them; None where there are none, or none was asked about.
    switch_eat: DetachedEat | None
    # Certificates of the keys that signed the tokens.
    keys: KeyChains
    reports: tuple[RawReport, ...]

    @property
    def digest(self) -> bytes:
        """SHA-256 of its canonical JSON, which the claims of an evidence document hold."""
        return hashlib.sha256(jcs.dumps(self.to_json())).digest()

    @property
    def ueids(self) -> frozenset[str]:
        """Which GPUs it is about, switches left out, as the tokens state. Raises `TokenMalformed`."""
        return token.ueids(self.eat)

    @classmethod
    def of(
        cls,
        eat: DetachedEat,
        keys: KeyChains,
        reports: tuple[RawReport, ...],
        switch_eat: DetachedEat | None = None,
    ) -> GpuEvidence:
        """Put evidence about GPUs together. Raises `GpuEvidenceMalformed` for keys that evidence does not hold."""
        try:
            return cls(eat, switch_eat, bounded(keys), reports)
        except ValueError as error:
            raise GpuEvidenceMalformed(str(error)) from error

    @classmethod
    def parse(cls, value: Any) -> GpuEvidence:
        """Read the `gpu_evidence` member. Raises `GpuEvidenceMalformed`, `TokenMalformed`."""
        try:
            fields = shape.members(value, _MEMBERS, "gpu_evidence")
            if fields["v"] != _VERSION or isinstance(fields["v"], bool) or fields["vendor"] != VENDOR:
                raise ValueError("the GPU evidence is of another version or vendor")
            reports = fields["reports"]
            if not isinstance(reports, list) or len(reports) > token.MAX_DEVICES:
                raise ValueError(f"reports is a list of at most {token.MAX_DEVICES}")
            switch_token = fields["switch_token"]
            return cls(
                DetachedEat.parse(fields["token"]),
                None if switch_token is None else DetachedEat.parse(switch_token),
                read_chains(fields["keys"]),
                tuple(_raw_report(report) for report in reports),
            )
        except ValueError as error:
            raise GpuEvidenceMalformed(str(error)) from error

    def to_json(self) -> dict[str, Any]:
        return {
            "v": _VERSION,
            "vendor": VENDOR,
            "token": self.eat.to_json(),
            "switch_token": None if self.switch_eat is None else self.switch_eat.to_json(),
            "keys": {key_id: [der.hex() for der in chain] for key_id, chain in self.keys.items()},
            "reports": [
                {"report": raw.report.hex(), "certificate_chain": raw.certificate_chain} for raw in self.reports
            ],
        }


@dataclass(frozen=True, slots=True)
class GpuRule:
    """What policy states about GPUs. Without an issuer no evidence passes."""

    # By name, as tokens state it.
    issuers: Mapping[str, Issuer]
    # DER of the roots under which devices sign their own reports; empty accepts none.
    device_roots: tuple[bytes, ...]
    # UEIDs, decimal. Empty: policy lists no GPUs, and any that is not revoked will do.
    allowed_ueids: frozenset[str]
    # UEIDs of GPUs and switches.
    revoked_ueids: frozenset[str]
    # As tokens name them, for example "GH100 A01 GSP BROM". Empty: any.
    allowed_models: frozenset[str]
    maximum_token_age_seconds: int
    # Whether every GPU must show its own report beside the issuer's word.
    reports_required: bool

    def without(self, ueids: frozenset[str]) -> GpuRule:
        """Return the rule with these devices revoked too, allowed or not."""
        return replace(self, revoked_ueids=self.revoked_ueids | ueids)


@dataclass(frozen=True, slots=True)
class GpuVerdict:
    """These devices answered this challenge, in confidential mode and unrevoked, by the word of `issuer`."""

    issuer: str
    devices: tuple[GpuDevice, ...]
    switches: tuple[SwitchDevice, ...]
    # Whether each GPU's own report was verified too.
    reports_verified: bool
    # Last unix second in which the verdict holds.
    valid_until: int

    def to_json(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "devices": [asdict(device) for device in self.devices],
            "switches": [asdict(switch) for switch in self.switches],
            "reports_verified": self.reports_verified,
        }


def verify_gpu_evidence(
    evidence: GpuEvidence, nonce: bytes, rule: GpuRule, now: int, note: Note = ignore
) -> GpuVerdict:
    """Judge GPU evidence for the 32-byte `nonce` (`binding.gpu_nonce`), or raise the reason of the first refusal.

    Proves that the devices answered the same challenge, not that they are in one machine.
    """
    keyring = Keyring(rule.issuers, evidence.keys, now)
    age = rule.maximum_token_age_seconds
    eat = token.verify_bundle(evidence.eat, nonce, keyring, age, now, note)
    bundles = [eat]
    if evidence.switch_eat is not None:
        switch_note = about("switches", note)
        bundles.append(
            token.verify_bundle(evidence.switch_eat, nonce, keyring, age, now, switch_note, kind=token.SWITCH)
        )
        switch_note("issuer", bundles[-1].issuer, eat.issuer)
    if any(bundle.issuer != eat.issuer for bundle in bundles):
        raise token.TokenIssuersDiffer("GPUs and switches are vouched for by different issuers")
    gpus = _judge_bundle(eat, claims.judge_gpu, note)
    switches = tuple(each for bundle in bundles[1:] for each in _judge_bundle(bundle, claims.judge_switch, note))
    _judge_identities(gpus, switches, rule, note)
    note("GPUs' own reports", len(evidence.reports), "one of each GPU" if rule.reports_required else "any or none")
    if rule.reports_required and not evidence.reports:
        raise ReportsRequired("policy asks for each GPU's own report")
    if evidence.reports:
        reports = [
            verify_report(
                raw.report, raw.certificate_chain, nonce, rule.device_roots, now, about(f"report {number}", note)
            )
            for number, raw in enumerate(evidence.reports)
        ]
        _match_reports(reports, gpus, note)
    valid_until = min(bundle.valid_until for bundle in bundles)
    return GpuVerdict(eat.issuer, gpus, switches, bool(evidence.reports), valid_until)


def _judge_bundle(
    eat: VerifiedEat, judge: Callable[[str, Mapping[str, Any], Note], _Device], note: Note
) -> tuple[_Device, ...]:
    """Judge the devices in the order of their numbers, then what is said of them as a whole."""
    claims.judge_version(eat.overall, note)
    names = sorted(eat.devices, key=lambda name: int(name.rpartition("-")[2]))
    devices = tuple(judge(name, eat.devices[name], about(name, note)) for name in names)
    claims.judge_overall(eat.overall, note)
    return devices


def _raw_report(value: Any) -> RawReport:
    fields = shape.members(value, _REPORT_MEMBERS, "report")
    report = shape.binary(fields["report"], "report")
    chain = shape.text(fields["certificate_chain"], "certificate_chain")
    if len(report) > MAX_REPORT_BYTES or len(chain) > MAX_CHAIN_BYTES:
        raise ValueError("a report or its chain is too long")
    return RawReport(report, chain)


def _judge_identities(gpus: Sequence[GpuDevice], switches: Sequence[SwitchDevice], rule: GpuRule, note: Note) -> None:
    ueids = [*(gpu.ueid for gpu in gpus), *(switch.ueid for switch in switches)]
    note("UEIDs", lambda: tuple(ueids), "each once, none revoked")
    if len(set(ueids)) != len(ueids):
        raise DeviceListedTwice("two devices have the same UEID")
    if revoked := sorted(rule.revoked_ueids.intersection(ueids)):
        raise DeviceRevoked(f"policy has revoked the device {revoked[0]}")
    for gpu in gpus:
        its = about(gpu.name, note)
        its("UEID that policy lists", gpu.ueid, rule.allowed_ueids or "any")
        if rule.allowed_ueids and gpu.ueid not in rule.allowed_ueids:
            raise GpuDeviceNotAllowed(f"policy does not list the GPU {gpu.ueid}")
        its("model that policy lists", gpu.hwmodel, rule.allowed_models or "any")
        if rule.allowed_models and gpu.hwmodel not in rule.allowed_models:
            raise GpuModelNotAllowed(f"policy does not list the GPU model {gpu.hwmodel}")


def _match_reports(reports: Sequence[VerifiedReport], gpus: Sequence[GpuDevice], note: Note) -> None:
    """Hold each GPU's report against the token's word: one each, of the same device and software."""
    by_ueid: Mapping[str, VerifiedReport] = {report.ueid: report for report in reports}
    note("UEIDs of the reports", lambda: {report.ueid for report in reports}, lambda: {gpu.ueid for gpu in gpus})
    if len(by_ueid) != len(reports) or by_ueid.keys() - {gpu.ueid for gpu in gpus}:
        raise ReportUnmatched("a report is of no GPU that the token names, or of one that has a report already")
    for gpu in gpus:
        report = by_ueid.get(gpu.ueid)
        if report is None:
            raise ReportMissing(f"{gpu.name} has no report of its own, and others have")
        reported, stated = (report.driver, report.vbios), (gpu.driver, gpu.vbios.upper())
        about(gpu.name, note)("driver and VBIOS, as reported and as the token states", reported, stated)
        if reported != stated:
            raise ReportDisagrees(f"{gpu.name}: the report names other software than the token")
