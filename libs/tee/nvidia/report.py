"""Responsible for a GPU's own report: the SPDM measurement exchange, its signature, and whom it answers.

The bytes are SPDM 1.1 (DMTF DSP0274): GET_MEASUREMENTS, 37 bytes, with the nonce, then MEASUREMENTS with blocks, the
device's nonce, NVIDIA's opaque data and the signature, r || s, over everything before it. What the measurements mean is
not judged: the reference values are the token issuer's.
"""

from __future__ import annotations

import hmac
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from libs.errors import Code, MeshError
from libs.tee.nvidia.chain import verify_chain
from libs.tee.steps import Note, ignore

# Real reports have a little over 4 KiB.
MAX_REPORT_BYTES = 16 * 1024
_REQUEST_BYTES = 37
# Version 1.1, GET_MEASUREMENTS, signature requested, all measurements; then the nonce, and certificate slot 0.
_REQUEST_HEAD = bytes.fromhex("11e001ff")
_RESPONSE_HEAD = bytes.fromhex("1160")
_NONCE_BYTES = 32
_SIGNATURE_BYTES = 96
_DMTF_MEASUREMENT = 1
_DRIVER_VERSION, _VBIOS_VERSION, _FWID = 3, 6, 20
_DRIVER_FORM = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}")


class ReportMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "GPU_REPORT_MALFORMED"


class ReportSignatureInvalid(MeshError):
    """The report was not signed by the key whose chain travels with it."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_REPORT_SIGNATURE_INVALID"


class ReportNonceMismatch(MeshError):
    """The report answers another challenge."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_REPORT_NONCE_MISMATCH"


class FwidMismatch(MeshError):
    """The device runs other firmware than its boot ROM certified the key for."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_FWID_MISMATCH"


@dataclass(frozen=True, slots=True)
class SpdmReport:
    """What a report says, **unverified**."""

    nonce: bytes
    # By index, from 1.
    measurements: Mapping[int, bytes]
    # For example "550.90.07" and, upper-case as in tokens, "96.00.9F.00.01".
    driver: str
    vbios: str
    # SHA-384 of the firmware that signed.
    fwid: bytes
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedReport:
    """A report made by the device `ueid` for the nonce that was asked for."""

    ueid: str
    driver: str
    vbios: str
    fwid: bytes
    measurements: Mapping[int, bytes]


def parse_report(data: bytes) -> SpdmReport:
    """Read request and response to the last byte. Raises `ReportMalformed`."""
    if len(data) > MAX_REPORT_BYTES:
        raise ReportMalformed(f"a report has at most {MAX_REPORT_BYTES} bytes")
    try:
        return _parse(data)
    except (struct.error, IndexError) as error:
        raise ReportMalformed("the report ends too early") from error
    except ValueError as error:
        raise ReportMalformed(str(error)) from error


def verify_report(
    data: bytes, certificate_chain: str, nonce: bytes, device_roots: Sequence[bytes], now: int, note: Note = ignore
) -> VerifiedReport:
    """Prove that a device under one of `device_roots` (DER) made the report for `nonce`.

    Raises this module's errors and those of `chain`. Does not ask whether a certificate was revoked.
    """
    report = parse_report(data)
    note("nonce", report.nonce, nonce)
    leaf = verify_chain(certificate_chain, device_roots, now, note)
    note("firmware (FWID)", report.fwid, leaf.fwid)
    half = _SIGNATURE_BYTES // 2
    r, s = (int.from_bytes(part, "big") for part in (report.signature[:half], report.signature[half:]))
    try:
        leaf.key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise ReportSignatureInvalid("the report is not signed by its chain's key") from error
    if not hmac.compare_digest(report.nonce, nonce):
        raise ReportNonceMismatch("the report answers another challenge")
    if leaf.fwid != report.fwid:
        raise FwidMismatch("the report's firmware is not the one that its key was certified for")
    return VerifiedReport(leaf.ueid, report.driver, report.vbios, report.fwid, report.measurements)


def _parse(data: bytes) -> SpdmReport:
    if data[:4] != _REQUEST_HEAD or data[_REQUEST_BYTES - 1] != 0:
        raise ValueError("the report does not start with a request for all signed measurements")
    if data[_REQUEST_BYTES : _REQUEST_BYTES + 2] != _RESPONSE_HEAD:
        raise ValueError("the report holds no measurements response")
    count, low, high = struct.unpack_from("<BHB", data, _REQUEST_BYTES + 4)
    blocks_start = _REQUEST_BYTES + 8
    blocks_end = blocks_start + low + (high << 16)
    opaque_start = blocks_end + _NONCE_BYTES + 2
    (opaque_bytes,) = struct.unpack_from("<H", data, opaque_start - 2)
    signed_bytes = opaque_start + opaque_bytes
    if signed_bytes + _SIGNATURE_BYTES != len(data):
        raise ValueError("the lengths inside the report do not add up")
    opaque = _opaque_fields(data[opaque_start:signed_bytes])
    return SpdmReport(
        nonce=data[4 : 4 + _NONCE_BYTES],
        measurements=_measurements(data[blocks_start:blocks_end], count),
        driver=_driver(opaque.get(_DRIVER_VERSION, b"")),
        vbios=_vbios(opaque.get(_VBIOS_VERSION, b"")),
        fwid=_sized(opaque.get(_FWID, b""), 48, "FWID"),
        signed=data[:signed_bytes],
        signature=data[signed_bytes:],
    )


def _measurements(record: bytes, count: int) -> Mapping[int, bytes]:
    """Read blocks of index, specification, size, and inside DMTF's type, size and value."""
    measurements: dict[int, bytes] = {}
    at = 0
    for _ in range(count):
        index, specification, size, _kind, value_size = struct.unpack_from("<BBHBH", record, at)
        end = at + 4 + size
        if specification != _DMTF_MEASUREMENT or size != value_size + 3 or end > len(record):
            raise ValueError("a measurement block has another form")
        if index == 0 or index in measurements:
            raise ValueError("a measurement has no index of its own")
        measurements[index] = record[at + 7 : end]
        at = end
    if at != len(record):
        raise ValueError("the measurement record is longer than its blocks")
    return measurements


def _opaque_fields(data: bytes) -> Mapping[int, bytes]:
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<HH", data, at)
        at += 4
        if kind in fields or at + size > len(data):
            raise ValueError("the opaque data has another form")
        fields[kind] = data[at : at + size]
        at += size
    return fields


def _driver(value: bytes) -> str:
    text = value.removesuffix(b"\0").decode("ascii")
    if _DRIVER_FORM.fullmatch(text) is None:
        raise ValueError("the report names no driver version")
    return text


def _vbios(value: bytes) -> str:
    """Five of eight little-endian bytes: 009f0096 01 is 96.00.9F.00.01."""
    version = _sized(value, 8, "VBIOS version")
    return ".".join(f"{byte:02X}" for byte in (*reversed(version[:4]), version[4]))


def _sized(value: bytes, size: int, what: str) -> bytes:
    if len(value) != size:
        raise ValueError(f"the report's {what} has {len(value)} bytes instead of {size}")
    return value
