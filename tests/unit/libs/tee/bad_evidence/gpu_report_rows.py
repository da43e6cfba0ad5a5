"""Rows about a GPU's own report and the chain of the key that signed it, beside a good token (step 10)."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from libs.tee.nvidia.report import MAX_REPORT_BYTES, verify_report
from services.devtee.gpu import Gpu, GpuVendor, ReportShape, sign_raw
from services.devtee.nras import TokenShape
from tests.unit.libs.tee.bad_evidence.gpu_rows import bundle
from tests.unit.libs.tee.bad_evidence.links import UNKNOWN, Link, chain, leaf
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, gpu_rules, with_gpu
from tests.unit.libs.tee.bench import NOW
from tests.unit.libs.tee.nvidia.gpu_bench import NONCE, GpuBench

_RECORD_BYTES = 64 * 55
_OPAQUE = 45 + _RECORD_BYTES + 34


def _json(report: bytes, chain: str) -> dict[str, str]:
    return {"report": report.hex(), "certificate_chain": chain}


def own_reports(bench: GpuBench, nonce: bytes, shape: ReportShape | None = None) -> list[dict[str, str]]:
    """Each GPU's own report."""
    return [_json(gpu.report(nonce, shape), gpu.chain) for gpu in bench.gpus]


def _reports(make: Callable[[Benches, bytes], list[dict[str, str]]], **rule: Any) -> Callable[[Benches], Present]:
    """A good token and these reports."""
    return lambda b: with_gpu(
        b, lambda nonce: bundle(b.gpu, nonce), reports=lambda nonce: make(b, nonce), rules=gpu_rules(b, **rule)
    )


def _first(change: Callable[[Gpu, bytes], bytes]) -> Callable[[Benches], Present]:
    """Both GPUs' reports, the first changed as it is."""

    def make(benches: Benches, nonce: bytes) -> list[dict[str, str]]:
        one, other = own_reports(benches.gpu, nonce)
        gpu = benches.gpu.gpus[0]
        return [_json(change(gpu, bytes.fromhex(one["report"])), gpu.chain), other]

    return _reports(make)


def _signed(change: Callable[[bytes], bytes]) -> Callable[[Benches], Present]:
    """The first GPU says something of another form, and signs it."""

    def sign(gpu: Gpu, report: bytes) -> bytes:
        signed = change(report[:-96])
        return signed + sign_raw(gpu.firmware.key, signed)

    return _first(sign)


def _put(at: int, form: str, value: int) -> Callable[[bytes], bytes]:
    def change(signed: bytes) -> bytes:
        data = bytearray(signed)
        struct.pack_into(form, data, at, value)
        return bytes(data)

    return change


def _opaque(kind: int, value: bytes | None) -> Callable[[bytes], bytes]:
    """Replace one field of the opaque data, or take it out."""

    def change(signed: bytes) -> bytes:
        rest, fields = signed[_OPAQUE:], {}
        while rest:
            each, size = struct.unpack_from("<HH", rest)
            fields[each], rest = rest[4 : 4 + size], rest[4 + size :]
        changed = {**fields, kind: value}
        return _with_opaque(signed, b"".join(_field(k, v) for k, v in changed.items() if v is not None))

    return change


def _field(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", kind, len(value)) + value


def _with_opaque(signed: bytes, opaque: bytes) -> bytes:
    return signed[: _OPAQUE - 2] + struct.pack("<H", len(opaque)) + opaque


def _longer_record(signed: bytes) -> bytes:
    """Two bytes behind the last block, counted in the record's length."""
    size = (_RECORD_BYTES + 2).to_bytes(3, "little")
    return signed[:42] + size + signed[45 : 45 + _RECORD_BYTES] + bytes(2) + signed[45 + _RECORD_BYTES :]


def _chained(
    make: Callable[[Gpu], Sequence[Link]], edit: Callable[[str], str] = lambda pem: pem, ueid: str = "1000"
) -> Callable[[Benches], Present]:
    """One GPU whose report is signed under a chain of our making; token, report and policy all name it."""

    def present(benches: Benches) -> Present:
        gpu = benches.gpu.gpus[0]
        links = make(gpu)
        pem, root = chain(links)
        nras, shape = benches.gpu.nras, TokenShape(devices={"ueid": ueid})

        def reports(nonce: bytes) -> list[dict[str, str]]:
            signed = gpu.report(nonce)[:-96]
            # A key on another curve makes a signature of another length, which its chain's refusal comes before.
            return [_json(signed + sign_raw(links[0].key, signed), edit(pem))]

        return with_gpu(
            benches,
            lambda nonce: nras.attest(benches.gpu.posted(nonce, gpus=(gpu,)), nonce, NOW, shape),
            reports=reports,
            rules=gpu_rules(benches, device_roots=(root,)),
        )

    return present


def _parts(pem: str) -> list[str]:
    return [part + "-----END CERTIFICATE-----\n" for part in pem.split("-----END CERTIFICATE-----\n")[:-1]]


def _second_report(benches: Benches, nonce: bytes) -> list[dict[str, str]]:
    return [*own_reports(benches.gpu, nonce), *own_reports(benches.gpu, nonce)[:1]]


def _report_of_a_stranger(benches: Benches, nonce: bytes) -> list[dict[str, str]]:
    gpu = benches.gpu.vendor.make_gpu(NOW)
    return [*own_reports(benches.gpu, nonce), _json(gpu.report(nonce), gpu.chain)]


def _chains_exchanged(benches: Benches, nonce: bytes) -> list[dict[str, str]]:
    one, other = own_reports(benches.gpu, nonce)
    return [
        {**one, "certificate_chain": other["certificate_chain"]},
        {**other, "certificate_chain": one["certificate_chain"]},
    ]


def _text_chain(text: str) -> Callable[[Benches], Present]:
    def make(benches: Benches, nonce: bytes) -> list[dict[str, str]]:
        one, other = own_reports(benches.gpu, nonce)
        return [{**one, "certificate_chain": text}, other]

    return _reports(make)


def _too_long(benches: Benches) -> Present:
    """A document may not even carry it, so it is verified by itself."""
    gpu, root = benches.gpu.gpus[0], benches.gpu.vendor.root.der
    signed = _opaque(99, bytes(MAX_REPORT_BYTES))(gpu.report(NONCE)[:-96])
    report = signed + sign_raw(gpu.firmware.key, signed)
    return lambda _steps: verify_report(report, gpu.chain, NONCE, (root,), NOW)


def _negative_serial(pem: str) -> str:
    """The leaf's serial number, 1000, made -1000."""
    leaf, *rest = _parts(pem)
    der = ssl.PEM_cert_to_DER_cert(leaf).replace(b"\x02\x02\x03\xe8", b"\x02\x02\xfc\x18", 1)
    return "".join((ssl.DER_cert_to_PEM_cert(der), *rest))


def _last_field_longer(signed: bytes) -> bytes:
    """The last field, of one byte, states that it has two."""
    return signed[:-3] + struct.pack("<H", 2) + signed[-1:]


def _flip(at: int) -> Callable[[Gpu, bytes], bytes]:
    def change(_gpu: Gpu, report: bytes) -> bytes:
        data = bytearray(report)
        data[at] ^= 1
        return bytes(data)

    return change


def _stranger() -> Any:
    return ec.generate_private_key(ec.SECP384R1())


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


_INVALID: list[tuple[str, Callable[[Gpu], Sequence[Link]]]] = [
    ("issuer that is no authority", lambda g: [leaf(g.fwid), Link(ca=False), Link()]),
    ("issuer that does not say whether it is an authority", lambda g: [leaf(g.fwid), Link(ca=None), Link()]),
    ("issuer that may not sign certificates", lambda g: [leaf(g.fwid), Link(signs_certificates=False), Link()]),
    ("issuer whose constraints are not critical", lambda g: [leaf(g.fwid), Link(critical=False), Link()]),
    ("root that is no authority", lambda g: [leaf(g.fwid), Link(), Link(ca=False)]),
    ("root that allows no authority below it", lambda g: [leaf(g.fwid), Link(), Link(path_length=0)]),
    ("authority that allows none below it", lambda g: [leaf(g.fwid), Link(), Link(path_length=0), Link()]),
    ("leaf that names another issuer", lambda g: [leaf(g.fwid, issuer="Attestation Service 2"), Link(), Link()]),
    ("leaf signed by a stranger", lambda g: [leaf(g.fwid, signed_by=_stranger()), Link(), Link()]),
    ("issuer with another kind of key", lambda g: [leaf(g.fwid), Link(key=_rsa()), Link()]),
    ("issuer on another curve", lambda g: [leaf(g.fwid), Link(key=ec.generate_private_key(ec.SECP256R1())), Link()]),
    ("leaf over another digest", lambda g: [leaf(g.fwid, hash=hashes.SHA256()), Link(), Link()]),
    ("leaf with an unknown critical extension", lambda g: [leaf(g.fwid, extensions=[(UNKNOWN, True)]), Link(), Link()]),
    ("issuer with an unknown critical extension", lambda g: [leaf(g.fwid), Link(extensions=[(UNKNOWN, True)]), Link()]),
    ("leaf that is an authority", lambda g: [leaf(g.fwid, ca=True), Link(), Link()]),
    ("leaf that may only sign certificates", lambda g: [leaf(g.fwid, signs_certificates=True), Link(), Link()]),
]
_MALFORMED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("request of another version", _put(0, "<B", 0x12)),
    ("request to another slot", _put(36, "<B", 1)),
    ("response of another kind", _put(38, "<B", 0x7F)),
    ("block of another specification", _put(46, "<B", 2)),
    ("block whose sizes disagree", _put(50, "<H", 49)),
    ("measurement 0", _put(45, "<B", 0)),
    ("measurement 2 twice", _put(45, "<B", 2)),
    ("one block fewer than the record holds", _put(41, "<B", 63)),
    ("one block more than the record holds", _put(41, "<B", 65)),
    ("bytes behind the last block", _longer_record),
    ("opaque field longer than the rest", _last_field_longer),
    ("opaque field twice", lambda signed: _with_opaque(signed, signed[_OPAQUE:] + _field(21, b"\x55"))),
    ("no driver version", _opaque(3, None)),
    ("driver version of another form", _opaque(3, b"newest\0")),
    ("driver version that is no text", _opaque(3, b"\xff.1\0")),
    ("short VBIOS version", _opaque(6, bytes(7))),
    ("no FWID", _opaque(20, None)),
]

good_chain = _chained(lambda g: [leaf(g.fwid), Link(path_length=0), Link(path_length=1)])

ROWS = [
    Row(
        "GPU without a report beside one that has it",
        10,
        "GPU_REPORT_MISSING",
        _reports(lambda b, n: own_reports(b.gpu, n)[:1]),
    ),
    Row("second report of one GPU", 10, "GPU_REPORT_UNMATCHED", _reports(_second_report)),
    Row("report of a GPU that the token does not name", 10, "GPU_REPORT_UNMATCHED", _reports(_report_of_a_stranger)),
    Row(
        "report of another driver than the token's",
        10,
        "GPU_REPORT_DISAGREES",
        _reports(lambda b, n: own_reports(b.gpu, n, ReportShape(driver="550.90.07"))),
    ),
    Row(
        "report of another VBIOS than the token's",
        10,
        "GPU_REPORT_DISAGREES",
        _reports(lambda b, n: own_reports(b.gpu, n, ReportShape(vbios="96.00.9F.00.02"))),
    ),
    Row(
        "report for another challenge",
        10,
        "GPU_REPORT_NONCE_MISMATCH",
        _reports(lambda b, n: own_reports(b.gpu, bytes(32))),
    ),
    Row(
        "report of other firmware than was certified",
        10,
        "GPU_FWID_MISMATCH",
        _reports(lambda b, n: own_reports(b.gpu, n, ReportShape(fwid=bytes(48)))),
    ),
    Row("reports with each other's chains", 10, "GPU_REPORT_SIGNATURE_INVALID", _reports(_chains_exchanged)),
    Row("flipped bit in a measurement", 10, "GPU_REPORT_SIGNATURE_INVALID", _first(_flip(60))),
    Row("flipped bit in the report's signature", 10, "GPU_REPORT_SIGNATURE_INVALID", _first(_flip(-1))),
    *(Row(f"GPU report: {name}", 10, "GPU_REPORT_MALFORMED", _signed(change)) for name, change in _MALFORMED),
    Row("GPU report that is cut off", 10, "GPU_REPORT_MALFORMED", _first(lambda _gpu, report: report[:40])),
    Row("GPU report with a tail", 10, "GPU_REPORT_MALFORMED", _first(lambda _gpu, report: report + b"\0")),
    Row("GPU report that is too long", None, "GPU_REPORT_MALFORMED", _too_long),
    Row(
        "device root that policy does not name",
        10,
        "GPU_CHAIN_NOT_TRUSTED",
        _reports(lambda b, n: own_reports(b.gpu, n), device_roots=(GpuVendor.create(NOW).root.der,)),
    ),
    Row("no device root", 10, "GPU_CHAIN_NOT_TRUSTED", _reports(lambda b, n: own_reports(b.gpu, n), device_roots=())),
    *(Row(f"GPU chain: {name}", 10, "GPU_CHAIN_INVALID", _chained(links)) for name, links in _INVALID),
    Row(
        "GPU chain: expired authority",
        10,
        "GPU_CHAIN_NOT_CURRENT",
        _chained(lambda g: [leaf(g.fwid), Link(start=NOW - 100, end=NOW - 1), Link()]),
    ),
    Row(
        "GPU chain: leaf not valid yet",
        10,
        "GPU_CHAIN_NOT_CURRENT",
        _chained(lambda g: [leaf(g.fwid, start=NOW + 1), Link(), Link()]),
    ),
    Row(
        "GPU chain: nine certificates",
        10,
        "GPU_CHAIN_MALFORMED",
        _chained(lambda g: [leaf(g.fwid), *(Link() for _ in range(8))]),
    ),
    Row(
        "GPU chain: root alone, which signs the report",
        10,
        "GPU_CHAIN_MALFORMED",
        _chained(lambda g: [Link(extensions=leaf(g.fwid).extensions)]),
    ),
    Row(
        "GPU chain: negative serial number",
        10,
        "GPU_CHAIN_MALFORMED",
        _chained(lambda g: [leaf(g.fwid), Link()], _negative_serial),
    ),
    Row(
        "GPU chain: certificate without a name",
        10,
        "GPU_CHAIN_MALFORMED",
        _chained(lambda g: [leaf(g.fwid, name=()), Link()]),
    ),
    Row("GPU chain: no certificate", 10, "GPU_CHAIN_MALFORMED", _text_chain("not PEM")),
    Row(
        "GPU chain: not ASCII",
        10,
        "GPU_CHAIN_MALFORMED",
        _chained(lambda g: [leaf(g.fwid), Link()], lambda pem: pem + "é"),
    ),
]
