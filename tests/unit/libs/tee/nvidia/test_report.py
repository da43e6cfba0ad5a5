"""Reports and their chains: each way to be refused, the rest made by a development GPU."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import MeshError
from libs.tee.nvidia.chain import verify_chain
from libs.tee.nvidia.report import MAX_REPORT_BYTES, parse_report, verify_report
from services.devtee.gpu import (
    DRIVER_VERSION,
    FWID_EXTENSION,
    VBIOS_VERSION,
    GpuVendor,
    ReportShape,
    reference_measurement,
    sign_raw,
)
from services.devtee.pki import Signer
from tests.unit.libs.tee.nvidia.gpu_bench import NONCE, NOW, GpuBench

_RECORD_BYTES = 64 * 55
_OPAQUE = 45 + _RECORD_BYTES + 34


def _refusal(bench: GpuBench, report: bytes, *, chain: str | None = None, nonce: bytes = NONCE) -> str:
    with pytest.raises(MeshError) as refusal:
        verify_report(report, chain or bench.gpus[0].chain, nonce, (bench.vendor.root.der,), NOW)
    return refusal.value.reason


def test_good_report_is_verified(gpu_bench: GpuBench) -> None:
    gpu = gpu_bench.gpus[0]
    verified = verify_report(gpu.report(NONCE), gpu.chain, NONCE, (gpu_bench.vendor.root.der,), NOW)
    assert (verified.ueid, verified.driver, verified.vbios) == (gpu.ueid, DRIVER_VERSION, VBIOS_VERSION)
    assert verified.fwid == gpu.fwid
    assert verified.measurements == {index: reference_measurement(index) for index in range(1, 65)}


def test_report_for_another_challenge_is_refused(gpu_bench: GpuBench) -> None:
    assert _refusal(gpu_bench, gpu_bench.gpus[0].report(bytes(32))) == "GPU_REPORT_NONCE_MISMATCH"


def test_report_with_another_devices_chain_is_refused(gpu_bench: GpuBench) -> None:
    report = gpu_bench.gpus[0].report(NONCE)
    assert _refusal(gpu_bench, report, chain=gpu_bench.gpus[1].chain) == "GPU_REPORT_SIGNATURE_INVALID"


# In the nonce, a measurement, the device's own nonce, the opaque data, and both halves of the signature.
@pytest.mark.parametrize("at", [4, 35, 52, 45 + _RECORD_BYTES, _OPAQUE + 4, -96, -48, -1])
def test_changed_byte_is_refused(gpu_bench: GpuBench, at: int) -> None:
    report = bytearray(gpu_bench.gpus[0].report(NONCE))
    report[at] ^= 1
    assert _refusal(gpu_bench, bytes(report)) == "GPU_REPORT_SIGNATURE_INVALID"


def test_other_firmware_than_certified_is_refused(gpu_bench: GpuBench) -> None:
    report = gpu_bench.gpus[0].report(NONCE, ReportShape(fwid=bytes(48)))
    assert _refusal(gpu_bench, report) == "GPU_FWID_MISMATCH"


def _put(at: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    def change(report: bytes) -> bytes:
        data = bytearray(report)
        struct.pack_into(form, data, at, *values)
        return bytes(data)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda report: b"",
        lambda report: report[:-1],
        lambda report: report + b"\0",
        lambda report: report + bytes(MAX_REPORT_BYTES),
        _put(0, "<B", 0x12),
        _put(1, "<B", 0xE1),
        _put(2, "<B", 0),
        _put(3, "<B", 1),
        _put(36, "<B", 1),
        _put(37, "<B", 0x10),
        _put(38, "<B", 0x7F),
        _put(41, "<B", 63),
        _put(41, "<B", 65),
        _put(41, "<B", 0),
        _put(42, "<H", 0xFFFF),
        _put(44, "<B", 0xFF),
        _put(42, "<H", 0),
        _put(45, "<B", 0),
        _put(45, "<B", 2),
        _put(46, "<B", 2),
        _put(47, "<H", 50),
        _put(47, "<H", 0xFFFF),
        _put(50, "<H", 49),
        _put(_OPAQUE - 2, "<H", 0),
        _put(_OPAQUE - 2, "<H", 0xFFFF),
        _put(_OPAQUE + 2, "<H", 0xFFFF),
        _put(_OPAQUE + 2, "<H", 7),
    ],
)
def test_report_of_another_form_is_refused(gpu_bench: GpuBench, change: Callable[[bytes], bytes]) -> None:
    assert _refusal(gpu_bench, change(gpu_bench.gpus[0].report(NONCE))) == "GPU_REPORT_MALFORMED"


def _with_opaque(report: bytes, opaque: bytes) -> bytes:
    return report[: _OPAQUE - 2] + struct.pack("<H", len(opaque)) + opaque + report[-96:]


def _fields(report: bytes) -> dict[int, bytes]:
    opaque, fields = report[_OPAQUE:-96], {}
    while opaque:
        kind, size = struct.unpack_from("<HH", opaque)
        fields[kind], opaque = opaque[4 : 4 + size], opaque[4 + size :]
    return fields


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (3, None),
        (3, b""),
        (3, b"580\0"),
        (3, b"580.159.03\0\0"),
        (3, b"580.159.03\n\0"),
        (3, b"\xff.1\0"),
        (6, None),
        (6, bytes(7)),
        (20, None),
        (20, bytes(47)),
    ],
)
def test_report_that_does_not_name_its_software_is_refused(gpu_bench: GpuBench, kind: int, value: bytes | None) -> None:
    report = gpu_bench.gpus[0].report(NONCE)
    fields = {**_fields(report), kind: value}
    opaque = b"".join(struct.pack("<HH", k, len(v)) + v for k, v in fields.items() if v is not None)
    assert _refusal(gpu_bench, _with_opaque(report, opaque)) == "GPU_REPORT_MALFORMED"


def test_opaque_field_given_twice_is_refused(gpu_bench: GpuBench) -> None:
    report = gpu_bench.gpus[0].report(NONCE)
    opaque = report[_OPAQUE:-96]
    twice = opaque + struct.pack("<HH", 20, 48) + bytes(48)
    assert _refusal(gpu_bench, _with_opaque(report, twice)) == "GPU_REPORT_MALFORMED"


def test_every_truncation_is_refused(gpu_bench: GpuBench) -> None:
    report = gpu_bench.gpus[0].report(NONCE)
    for length in range(len(report)):
        with pytest.raises(MeshError, match="report"):
            parse_report(report[:length])


@given(st.binary(max_size=300), st.integers(0, 4200), st.booleans())
def test_any_bytes_are_refused_with_a_reason(gpu_bench: GpuBench, noise: bytes, at: int, framed: bool) -> None:
    report = gpu_bench.gpus[0].report(NONCE)
    data = report[:at] + noise + report[at + len(noise) :] if framed else noise
    if data != report:
        with pytest.raises(MeshError):
            verify_report(data, gpu_bench.gpus[0].chain, bytes(32), (gpu_bench.vendor.root.der,), NOW)


@dataclass(slots=True)
class _Link:
    """One certificate of a chain to be made; the default is a good authority."""

    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    hash: Any = field(default_factory=hashes.SHA384)
    ca: bool | None = True
    path_length: int | None = None
    signs_certificates: bool = True
    critical: bool = True
    issuer: str | None = None
    start: datetime = datetime.fromtimestamp(NOW, UTC) - timedelta(days=1)
    end: datetime = datetime.fromtimestamp(NOW, UTC) + timedelta(days=1)
    extra: x509.UnrecognizedExtension | None = None
    extra_critical: bool = False
    signed_by: Any = None


def _leaf(**changes: Any) -> _Link:
    return _Link(**{"ca": None, "signs_certificates": False, **changes})


def _chain(*links: _Link) -> tuple[str, bytes]:
    """Make a chain, leaf first; the last link signs itself. Returns its PEM and the root's DER."""
    above = [*links[1:], links[-1]]
    made = []
    for number, (link, issuer) in enumerate(zip(links, above, strict=True)):
        number_above = min(number + 1, len(links) - 1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(f"link {number}"))
            .issuer_name(_name(link.issuer or f"link {number_above}"))
            .public_key(link.key.public_key())
            .serial_number(1000 + number)
            .not_valid_before(link.start)
            .not_valid_after(link.end)
            .add_extension(_usage(link.signs_certificates), critical=link.critical)
        )
        if link.ca is not None:
            constraints = x509.BasicConstraints(ca=link.ca, path_length=link.path_length)
            builder = builder.add_extension(constraints, critical=link.critical)
        if link.extra is not None:
            builder = builder.add_extension(link.extra, critical=link.extra_critical)
        made.append(Signer(link.key, builder.sign(link.signed_by or issuer.key, link.hash)))
    return "".join(signer.pem for signer in made), made[-1].der


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _chain_refusal(pem: str, root: bytes, now: int = NOW) -> str:
    with pytest.raises(MeshError) as refusal:
        verify_chain(pem, (root,), now)
    return refusal.value.reason


def test_good_chain_is_verified() -> None:
    pem, root = _chain(_leaf(), _Link(path_length=0), _Link(path_length=1), _Link(path_length=2))
    verified = verify_chain(pem, (b"another root", root), NOW)
    assert verified.ueid == "1000"
    assert verified.fwid is None


_UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"\x05\x00")


@pytest.mark.parametrize(
    "links",
    [
        [_leaf(), _Link(ca=False), _Link()],
        [_leaf(), _Link(ca=None), _Link()],
        [_leaf(), _Link(signs_certificates=False), _Link()],
        [_leaf(), _Link(critical=False), _Link()],
        [_leaf(), _Link(), _Link(ca=False)],
        [_leaf(), _Link(), _Link(path_length=0)],
        [_leaf(), _Link(), _Link(path_length=0), _Link()],
        [_leaf(), _Link(), _Link(), _Link(path_length=1)],
        [_leaf(issuer="link 2"), _Link(), _Link()],
        [_leaf(signed_by=ec.generate_private_key(ec.SECP384R1())), _Link(), _Link()],
        [_leaf(key=ec.generate_private_key(ec.SECP256R1())), _Link(), _Link()],
        [_leaf(), _Link(key=ec.generate_private_key(ec.SECP256R1())), _Link()],
        [_leaf(hash=hashes.SHA256()), _Link(), _Link()],
        [_leaf(), _Link(hash=hashes.SHA512()), _Link()],
        [_leaf(extra=_UNKNOWN, extra_critical=True), _Link(), _Link()],
        [_leaf(), _Link(extra=_UNKNOWN, extra_critical=True), _Link()],
        [_leaf(ca=True), _Link(), _Link()],
        [_Link(), _Link(), _Link()],
        [_leaf(signs_certificates=True), _Link(), _Link()],
    ],
)
def test_link_that_does_not_hold_is_refused(links: list[_Link]) -> None:
    assert _chain_refusal(*_chain(*links)) == "GPU_CHAIN_INVALID"


def test_leaf_that_issues_a_leaf_is_refused(gpu_bench: GpuBench) -> None:
    """A device's firmware holds its report key, so it must not be able to vouch for keys of its choice."""
    gpu = gpu_bench.gpus[0]
    key = ec.generate_private_key(ec.SECP384R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(_name("forged"))
        .issuer_name(gpu.firmware.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.fromtimestamp(NOW - 60, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 60, UTC))
        .add_extension(_usage(False), critical=True)
        .sign(gpu.firmware.key, hashes.SHA384())
    )
    pem = forged.public_bytes(Encoding.PEM).decode() + gpu.chain
    assert _chain_refusal(pem, gpu_bench.vendor.root.der) == "GPU_CHAIN_INVALID"


def test_root_that_policy_does_not_name_is_refused(gpu_bench: GpuBench) -> None:
    chain = gpu_bench.gpus[0].chain
    assert _chain_refusal(chain, GpuVendor.create(NOW).root.der) == "GPU_CHAIN_NOT_TRUSTED"
    with pytest.raises(MeshError, match="does not end at a root"):
        verify_chain(chain, (), NOW)


def test_root_with_the_same_name_and_another_key_is_refused(gpu_bench: GpuBench) -> None:
    vendor = GpuVendor.create(NOW)
    pem = gpu_bench.gpus[0].chain.removesuffix(gpu_bench.vendor.root.pem) + vendor.root.pem
    assert _chain_refusal(pem, vendor.root.der) == "GPU_CHAIN_INVALID"


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("offset", [-90_000, 90_000])
def test_certificate_outside_its_time_is_refused(place: int, offset: int) -> None:
    links = [_leaf(), _Link(), _Link()]
    wide = timedelta(days=365)
    for number, link in enumerate(links):
        if number != place:
            link.start, link.end = link.start - wide, link.end + wide
    pem, root = _chain(*links)
    assert verify_chain(pem, (root,), NOW).ueid == "1000"
    assert _chain_refusal(pem, root, NOW + offset) == "GPU_CHAIN_NOT_CURRENT"


@pytest.mark.parametrize("number", [0, 1, 9])
def test_chain_of_another_length_is_refused(number: int) -> None:
    pem, root = _chain(_leaf(), *(_Link() for _ in range(8)))
    parts = [part + "-----END CERTIFICATE-----\n" for part in pem.split("-----END CERTIFICATE-----\n")[:-1]]
    assert _chain_refusal("".join(parts[:number]), root) == "GPU_CHAIN_MALFORMED"


@pytest.mark.parametrize(
    "text",
    [
        "not PEM",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 2,
        "-----BEGIN CERTIFICATE-----\n" * 2,
        "é",
        " " * (32 * 1024 + 1),
    ],
)
def test_chain_that_cannot_be_read_is_refused(text: str) -> None:
    assert _chain_refusal(text, b"") == "GPU_CHAIN_MALFORMED"


@pytest.mark.parametrize(
    "value",
    [
        bytes(48),
        bytes.fromhex("303d060960864801650304020104 30".replace(" ", "")) + bytes(48),
        bytes.fromhex("303d06096086480165030402020430") + bytes(48) + b"\0",
    ],
)
def test_certified_firmware_is_read_in_no_other_form(value: bytes) -> None:
    pem, root = _chain(_leaf(extra=x509.UnrecognizedExtension(FWID_EXTENSION, value)), _Link())
    assert verify_chain(pem, (root,), NOW).fwid is None


def test_leaf_that_certifies_no_firmware_is_refused(gpu_bench: GpuBench) -> None:
    leaf = _leaf()
    pem, root = _chain(leaf, _Link())
    signed = gpu_bench.gpus[0].report(NONCE)[:-96]
    with pytest.raises(MeshError) as refusal:
        verify_report(signed + sign_raw(leaf.key, signed), pem, NONCE, (root,), NOW)
    assert refusal.value.reason == "GPU_FWID_MISMATCH"


@pytest.mark.parametrize("serial", [0, -1])
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_serial_number_that_is_not_positive_is_refused(gpu_bench: GpuBench, serial: int) -> None:
    gpu = gpu_bench.gpus[0]
    der = bytearray(gpu.firmware.der)
    start = der.index(bytes.fromhex("a003020102")) + 7
    der[start : start + der[start - 1]] = serial.to_bytes(der[start - 1], "big", signed=True)
    chain = _pem(bytes(der)) + gpu.chain.removeprefix(gpu.firmware.pem)
    assert _chain_refusal(chain, gpu_bench.vendor.root.der) == "GPU_CHAIN_MALFORMED"


def test_certificate_of_an_unknown_version_is_refused(gpu_bench: GpuBench) -> None:
    gpu = gpu_bench.gpus[0]
    changed = gpu.firmware.der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1)
    chain = _pem(changed) + gpu.chain.removeprefix(gpu.firmware.pem)
    assert _chain_refusal(chain, gpu_bench.vendor.root.der) == "GPU_CHAIN_MALFORMED"


@given(st.integers(0, 600), st.binary(min_size=1, max_size=4))
def test_any_certificate_is_refused_with_a_reason(gpu_bench: GpuBench, at: int, noise: bytes) -> None:
    gpu = gpu_bench.gpus[0]
    der = gpu.firmware.der
    changed = der[:at] + noise + der[at + len(noise) :]
    text = gpu.chain.removeprefix(gpu.firmware.pem)
    if changed != der:
        with pytest.raises(MeshError):
            verify_chain(_pem(changed) + text, (gpu_bench.vendor.root.der,), NOW)


def _pem(der: bytes) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"
