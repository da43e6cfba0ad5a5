"""Responsible for judging what a verified token says of one device.

Claims of version 3.0 are understood. Version 2.0 says of no certificate whether it was revoked, so it is refused. No
claim of 3.0 names the confidential mode: a GPU out of that mode makes no report at all, and one in its development mode
differs in its measurements. The issuer then states neither `dbgstat` "disabled" nor `secboot` true, and both are asked
for here.

The checks stand in the order of cause and effect: when a report cannot be read nothing behind it holds either, and the
reason given should be the first cause.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.errors import Code, MeshError
from libs.tee.nvidia.report import FwidMismatch
from libs.tee.nvidia.token import GpuNonceMismatch
from libs.tee.steps import Note, about, ignore

VERSION = "3.0"
_UEID = re.compile(r"[0-9]{1,60}")
_MODEL = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,62}[\x21-\x7e])?")
_SOFTWARE_VERSION = re.compile(r"[0-9A-Za-z]{1,16}(?:\.[0-9A-Za-z]{1,16}){1,7}")


class ClaimsVersionNotSupported(MeshError):
    """The token's claims are of another version than 3.0: ask the issuer for that one."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_CLAIMS_VERSION"


class DeviceClaimsMalformed(MeshError):
    """A device is not named: its kind, model, UEID or versions are missing."""

    code = Code.INVALID_ARGUMENT
    reason = "GPU_CLAIMS_MALFORMED"


class OverallResultFailed(MeshError):
    """The issuer's own policy refused the platform."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_OVERALL_FAILED"


class ArchitectureMismatch(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_ARCHITECTURE_MISMATCH"


class DeviceReportNotVerified(MeshError):
    """The issuer could not read or verify the device's report."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_DEVICE_REPORT_NOT_VERIFIED"


class CertificateRevoked(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_CERTIFICATE_REVOKED"


class CertificateNotValid(MeshError):
    """A certificate has expired or does not verify."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_CERTIFICATE_NOT_VALID"


class RevocationUnknown(MeshError):
    """Nothing fresh says that a certificate is still good, and what is unknown is refused."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_REVOCATION_UNKNOWN"


class DriverRimNotVerified(MeshError):
    """There are no verified reference values for the driver."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_DRIVER_RIM_NOT_VERIFIED"


class VbiosRimNotVerified(MeshError):
    """There are no verified reference values for the VBIOS."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_VBIOS_RIM_NOT_VERIFIED"


class SwitchBiosRimNotVerified(MeshError):
    """There are no verified reference values for a switch's BIOS."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"


class MeasurementsFailed(MeshError):
    """The device runs something else than the reference values describe."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_MEASUREMENTS_FAILED"


class DebugEnabled(MeshError):
    """The device can be looked into, or the issuer does not say that it cannot."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_DEBUG_ENABLED"


class SecureBootOff(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_SECURE_BOOT_OFF"


class WarningGiven(MeshError):
    """The issuer passed the device with a warning, for example that a certificate is on hold."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_WARNING"


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A GPU that passed."""

    # In the bundle, for example "GPU-0".
    name: str
    # The serial number of the certificate under its report key, decimal: who the device is until its firmware changes.
    ueid: str
    hwmodel: str
    driver: str
    vbios: str


@dataclass(frozen=True, slots=True)
class SwitchDevice:
    """An NVSwitch that passed."""

    name: str
    ueid: str
    hwmodel: str
    bios: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """What claims 3.0 say of one kind of device, by the middle of their names."""

    # As `x-nvidia-device-type` states it.
    device_type: str
    prefix: str
    # Certificate chains, by the end of their claims' names.
    chains: tuple[str, ...]
    # Claims that must be exactly true, in order.
    must_hold: tuple[tuple[str, type[MeshError]], ...]


_REPORT_CHECKS: tuple[tuple[str, type[MeshError]], ...] = (
    ("arch-check", ArchitectureMismatch),
    ("attestation-report-parsed", DeviceReportNotVerified),
    ("attestation-report-signature-verified", DeviceReportNotVerified),
    ("attestation-report-nonce-match", GpuNonceMismatch),
    ("attestation-report-cert-chain-fwid-match", FwidMismatch),
)


def _rim_checks(name: str, error: type[MeshError]) -> tuple[tuple[str, type[MeshError]], ...]:
    ends = ("fetched", "signature-verified", "version-match", "measurements-available")
    return tuple((f"{name}-rim-{end}", error) for end in ends)


_GPU = _Kind(
    device_type="gpu",
    prefix="x-nvidia-gpu-",
    chains=("attestation-report", "driver-rim", "vbios-rim"),
    must_hold=(
        *_REPORT_CHECKS,
        *_rim_checks("driver", DriverRimNotVerified),
        *_rim_checks("vbios", VbiosRimNotVerified),
        ("vbios-index-no-conflict", VbiosRimNotVerified),
    ),
)
_SWITCH = _Kind(
    device_type="nvswitch",
    prefix="x-nvidia-switch-",
    chains=("attestation-report", "bios-rim"),
    must_hold=(*_REPORT_CHECKS, *_rim_checks("bios", SwitchBiosRimNotVerified)),
)


def judge_version(overall: Mapping[str, Any], note: Note = ignore) -> None:
    """Refuse claims of another version than 3.0 before any of them is read."""
    note("x-nvidia-ver", overall.get("x-nvidia-ver"), VERSION)
    if overall.get("x-nvidia-ver") != VERSION:
        raise ClaimsVersionNotSupported(f"claims of version {VERSION} are required: others do not state revocation")


def judge_overall(overall: Mapping[str, Any], note: Note = ignore) -> None:
    """Ask this last: a device that failed has its own reason, which says more."""
    note("x-nvidia-overall-att-result", overall.get("x-nvidia-overall-att-result"), True)
    if overall.get("x-nvidia-overall-att-result") is not True:
        raise OverallResultFailed("the attestation service does not vouch for the platform as a whole")


def judge_gpu(name: str, claims: Mapping[str, Any], note: Note = ignore) -> GpuDevice:
    _judge(name, claims, _GPU, note)
    return GpuDevice(
        name=name,
        ueid=_text(name, claims, note, "ueid", _UEID),
        hwmodel=_text(name, claims, note, "hwmodel", _MODEL),
        driver=_text(name, claims, note, "x-nvidia-gpu-driver-version", _SOFTWARE_VERSION),
        vbios=_text(name, claims, note, "x-nvidia-gpu-vbios-version", _SOFTWARE_VERSION),
    )


def judge_switch(name: str, claims: Mapping[str, Any], note: Note = ignore) -> SwitchDevice:
    _judge(name, claims, _SWITCH, note)
    return SwitchDevice(
        name=name,
        ueid=_text(name, claims, note, "ueid", _UEID),
        hwmodel=_text(name, claims, note, "hwmodel", _MODEL),
        bios=_text(name, claims, note, "x-nvidia-switch-bios-version", _SOFTWARE_VERSION),
    )


def _judge(name: str, claims: Mapping[str, Any], kind: _Kind, note: Note) -> None:
    # NRAS leaves these two out of a device's token; where they are stated they must agree.
    version_name = f"{kind.prefix}claims-version"
    note(version_name, claims.get(version_name, VERSION), VERSION)
    if claims.get(version_name, VERSION) != VERSION:
        raise ClaimsVersionNotSupported(f"{name}: claims of version {VERSION} are required")
    note("x-nvidia-device-type", claims.get("x-nvidia-device-type", kind.device_type), kind.device_type)
    if claims.get("x-nvidia-device-type", kind.device_type) != kind.device_type:
        raise DeviceClaimsMalformed(f"{name}: the token is about another kind of device")
    for end, error in kind.must_hold:
        note(kind.prefix + end, claims.get(kind.prefix + end), True)
        if claims.get(kind.prefix + end) is not True:
            raise error(f"{name}: the attestation service does not state {kind.prefix}{end}")
    for end in kind.chains:
        chain_name = f"{kind.prefix}{end}-cert-chain"
        _judge_chain(f"{name}: {end}", claims.get(chain_name), about(chain_name, note))
    note("measres", claims.get("measres"), "success")
    mismatches = claims.get("x-nvidia-mismatch-measurement-records")
    note("x-nvidia-mismatch-measurement-records", mismatches, None)
    if claims.get("measres") != "success" or mismatches:
        raise MeasurementsFailed(f"{name}: the measurements are not the reference values")
    note("dbgstat", claims.get("dbgstat"), "disabled")
    if claims.get("dbgstat") != "disabled":
        raise DebugEnabled(f"{name}: the attestation service does not state that debugging is disabled")
    note("secboot", claims.get("secboot"), True)
    if claims.get("secboot") is not True:
        raise SecureBootOff(f"{name}: the attestation service does not state that secure boot is on")
    note("x-nvidia-attestation-warning", claims.get("x-nvidia-attestation-warning"), None)
    if claims.get("x-nvidia-attestation-warning") is not None:
        raise WarningGiven(f"{name}: the attestation service gives a warning: read the token's claims")


def _judge_chain(what: str, chain: Any, note: Note) -> None:
    if not isinstance(chain, dict):
        note("statement about the certificates", chain, "an object")
        raise RevocationUnknown(f"{what}: nothing is said about the certificates")
    status, ocsp = chain.get("x-nvidia-cert-status"), chain.get("x-nvidia-cert-ocsp-status")
    note("x-nvidia-cert-status", status, "valid")
    note("x-nvidia-cert-ocsp-status", ocsp, "good")
    note("x-nvidia-cert-revocation-reason", chain.get("x-nvidia-cert-revocation-reason"), None)
    if "revoked" in (status, ocsp) or chain.get("x-nvidia-cert-revocation-reason") is not None:
        raise CertificateRevoked(f"{what}: a certificate is revoked")
    if status != "valid":
        raise CertificateNotValid(f"{what}: a certificate is not valid")
    # NVIDIA's own verifier states these two; its service does not, and says "good" only once it has checked the answer.
    # Left out, they take nothing away: it is the issuer's signed word either way. Said, they must say so.
    fresh = ("x-nvidia-cert-ocsp-response-valid", "x-nvidia-cert-ocsp-nonce-matches")
    for name in fresh:
        note(name, chain.get(name, "not stated"), "true or not stated")
    if ocsp != "good" or any(chain.get(name, True) is not True for name in fresh):
        raise RevocationUnknown(f"{what}: no fresh answer says that the certificates are good")


def _text(device: str, claims: Mapping[str, Any], note: Note, name: str, form: re.Pattern[str]) -> str:
    value = claims.get(name)
    note(name, value, lambda: f"of the form {form.pattern}")
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise DeviceClaimsMalformed(f"{device}: the claim {name} is missing or has another form")
    return value
