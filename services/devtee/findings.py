"""Responsible for what the development attestation service finds in a GPU's report, as NVIDIA's claims (3.0).

It reads and verifies reports with code of its own, so maker and relying verifier cannot share a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from libs.errors import Code, MeshError
from services.devtee.gpu import DRIVER_VERSION, FWID_EXTENSION, MEASUREMENTS, VBIOS_VERSION, reference_measurement

CLAIMS_VERSION = "3.0"

_OEM_ID = "5703"
_CERTIFICATE_END = "2035-01-01T00:00:00Z"


class AttestationRequestInvalid(MeshError):
    """The request is not one for Hopper GPUs with claims 3.0, or its evidence cannot be read."""

    code = Code.INVALID_ARGUMENT
    reason = "ATTESTATION_REQUEST_INVALID"


@dataclass(frozen=True, slots=True)
class PostedReport:
    report: bytes
    certificate_chain: bytes
    """PEM, leaf first."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """A report cut at the places where SPDM puts its parts."""

    nonce: bytes
    measurements: list[bytes]
    opaque: dict[int, bytes]
    signed: bytes
    signature: bytes

    @classmethod
    def of(cls, report: bytes) -> _Reading:
        signed, signature = report[:-96], report[-96:]
        record_bytes = int.from_bytes(signed[42:45], "little")
        record = signed[45 : 45 + record_bytes]
        size = 55
        measurements = [record[at + 7 : at + size] for at in range(0, len(record), size)]
        opaque, rest = {}, signed[45 + record_bytes + 34 :]
        while len(rest) >= 4:
            kind, length = int.from_bytes(rest[:2], "little"), int.from_bytes(rest[2:4], "little")
            opaque[kind], rest = rest[4 : 4 + length], rest[4 + length :]
        return cls(signed[4:36], measurements, opaque, signed, signature)


def gpu_claims(posted: PostedReport, nonce: bytes, root: x509.Certificate) -> dict[str, Any]:
    """Verify one report and say what was found; a report that cannot be tied to a device of ours is refused."""
    reading = _Reading.of(posted.report)
    leaf, model = _device(posted.certificate_chain, root)
    driver = reading.opaque.get(3, b"").rstrip(b"\0").decode("ascii", "replace")
    vbios = _vbios(reading.opaque.get(6, b""))
    expected = [reference_measurement(index) for index in range(1, MEASUREMENTS + 1)]
    pairs = zip(expected, reading.measurements, strict=False)
    mismatches = [index for index, (golden, runtime) in enumerate(pairs, 1) if golden != runtime]
    checks = {
        "attestation-report-nonce-match": reading.nonce == nonce,
        "attestation-report-signature-verified": _is_signed(leaf, reading),
        "attestation-report-cert-chain-fwid-match": _fwid(leaf) == reading.opaque.get(20),
        "driver-rim-version-match": driver == DRIVER_VERSION,
        "vbios-rim-version-match": vbios == VBIOS_VERSION,
    }
    is_good = all(checks.values()) and len(reading.measurements) == MEASUREMENTS and not mismatches
    always = ("arch-check", "attestation-report-parsed", "vbios-index-no-conflict", *_rim("driver"), *_rim("vbios"))
    return {
        **_common_claims("gpu", is_good),
        "ueid": str(leaf.serial_number),
        "hwmodel": model,
        "x-nvidia-gpu-driver-version": driver,
        "x-nvidia-gpu-vbios-version": vbios,
        "x-nvidia-mismatch-measurement-records": [{"index": index} for index in mismatches] or None,
        **{f"x-nvidia-gpu-{name}": True for name in always},
        **{f"x-nvidia-gpu-{name}": holds for name, holds in checks.items()},
        **{f"x-nvidia-gpu-{name}-cert-chain": _chain() for name in ("attestation-report", "driver-rim", "vbios-rim")},
    }


def switch_claims(ueid: str, *, is_good: bool = True) -> dict[str, Any]:
    ends = ("parsed", "signature-verified", "nonce-match", "cert-chain-fwid-match")
    always = ("arch-check", *(f"attestation-report-{end}" for end in ends), *_rim("bios"), "bios-rim-version-match")
    return {
        **_common_claims("switch", is_good),
        "ueid": ueid,
        "hwmodel": "DEV_10 A01 FSP BROM",
        "x-nvidia-switch-bios-version": VBIOS_VERSION,
        "x-nvidia-mismatch-measurement-records": None,
        **{f"x-nvidia-switch-{name}": True for name in always},
        **{f"x-nvidia-switch-{name}-cert-chain": _chain() for name in ("attestation-report", "bios-rim")},
    }


def _common_claims(kind: str, is_good: bool) -> dict[str, Any]:
    # As NVIDIA does: what a device with other measurements does about debugging and secure boot is unknown.
    return {
        "oemid": _OEM_ID,
        "measres": "success" if is_good else "fail",
        "secboot": True if is_good else None,
        "dbgstat": "disabled" if is_good else None,
        f"x-nvidia-{kind}-claims-version": CLAIMS_VERSION,
        "x-nvidia-attestation-warning": None,
    }


def _rim(name: str) -> tuple[str, ...]:
    return tuple(f"{name}-rim-{end}" for end in ("fetched", "signature-verified", "measurements-available"))


def _chain() -> dict[str, Any]:
    return {
        "x-nvidia-cert-status": "valid",
        "x-nvidia-cert-expiration-date": _CERTIFICATE_END,
        "x-nvidia-cert-ocsp-status": "good",
        "x-nvidia-cert-ocsp-response-valid": True,
        "x-nvidia-cert-ocsp-nonce-matches": True,
        "x-nvidia-cert-revocation-reason": None,
    }


def _device(chain: bytes, root: x509.Certificate) -> tuple[x509.Certificate, str]:
    """Return the leaf under our root, and the model that its boot ROM's certificate names."""
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        for subject, issuer in zip(certificates, [*certificates[1:], root], strict=True):
            subject.verify_directly_issued_by(issuer)
        boot_rom = certificates[1].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return certificates[0], str(boot_rom[0].value)
    except (ValueError, TypeError, IndexError, InvalidSignature) as error:
        raise AttestationRequestInvalid("the evidence is not of a development GPU of this service") from error


def _is_signed(leaf: x509.Certificate, reading: _Reading) -> bool:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    r, s = (int.from_bytes(part, "big") for part in (reading.signature[:48], reading.signature[48:]))
    try:
        key.verify(utils.encode_dss_signature(r, s), reading.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def _fwid(leaf: x509.Certificate) -> bytes | None:
    try:
        extension = leaf.extensions.get_extension_for_oid(FWID_EXTENSION).value
    except x509.ExtensionNotFound:
        return None
    return extension.value[-48:] if isinstance(extension, x509.UnrecognizedExtension) else None


def _vbios(value: bytes) -> str:
    return ".".join(f"{byte:02X}" for byte in (*value[:4][::-1], *value[4:5]))
