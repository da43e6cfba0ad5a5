"""A SEV-SNP chip under a root of its own: reports, certificates and CRLs in AMD's form, any part of which can be bent.

Its RSA keys have 2048 bits where AMD's have 4096, because making them is slow and the verifier leaves the size to
whoever pins the root.
"""

from __future__ import annotations

import datetime
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.report import PlatformFlag, PolicyFlag, Product, Tcb

NOW = 1_800_000_000
DAY = 86_400
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973

_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
_ARC = "1.3.6.1.4.1.3704.1"
_RESERVED_ONE = 1 << 17
# Offset and form of the report's fields (AMD 56860).
_FIELDS = {
    "version": (0x000, "<I"),
    "guest_svn": (0x004, "<I"),
    "policy": (0x008, "<Q"),
    "family_id": (0x010, "16s"),
    "image_id": (0x020, "16s"),
    "vmpl": (0x030, "<I"),
    "algorithm": (0x034, "<I"),
    "current_tcb": (0x038, "8s"),
    "platform": (0x040, "<Q"),
    "key_info": (0x048, "<I"),
    "report_data": (0x050, "64s"),
    "measurement": (0x090, "48s"),
    "host_data": (0x0C0, "32s"),
    "id_key_digest": (0x0E0, "48s"),
    "author_key_digest": (0x110, "48s"),
    "report_id": (0x140, "32s"),
    "report_id_ma": (0x160, "32s"),
    "reported_tcb": (0x180, "8s"),
    "cpu": (0x188, "3s"),
    "chip_id": (0x1A0, "64s"),
    "committed_tcb": (0x1E0, "8s"),
    "current_firmware": (0x1E8, "4s"),
    "committed_firmware": (0x1EC, "4s"),
    "launch_tcb": (0x1F0, "8s"),
    "launch_mitigations": (0x1F8, "<Q"),
    "current_mitigations": (0x200, "<Q"),
}
_CPUS = {Product.MILAN: b"\x19\x01\x01", Product.GENOA: b"\x19\x11\x01", Product.TURIN: b"\x1a\x02\x01"}

Changes = Mapping[str, int | bytes]
Patches = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Form:
    """What a certificate is to state."""

    subject: str
    issuer: str
    serial: int
    ca: bool = False
    signs_certificates: bool = False
    signs_crls: bool = False
    start: int = NOW - DAY
    end: int = NOW + 30 * DAY
    # By OID, bare values.
    amd: Mapping[str, bytes] = field(default_factory=dict)
    # Extensions that the chain's verifier has no business to know.
    odd: tuple[x509.ExtensionType, ...] = ()


class SnpChip:
    """One chip of a product, its three keys, and everything that AMD and the chip would sign."""

    def __init__(self, product: Product = Product.MILAN) -> None:
        self.product = product
        self.tcb = Tcb(4, 1, 24, 219, 2 if product is Product.TURIN else None)
        self.hwid = bytes(range(1, 9 if product is Product.TURIN else 65))
        self.ark_key = rsa.generate_private_key(65537, 2048)
        self.ask_key = rsa.generate_private_key(65537, 2048)
        self.vcek_key = ec.generate_private_key(ec.SECP384R1())
        self.ark_form = Form(
            f"ARK-{product}", f"ARK-{product}", 65536, ca=True, signs_certificates=True, signs_crls=True
        )
        self.ask_form = Form(f"SEV-{product}", f"ARK-{product}", 65537, ca=True, signs_certificates=True)
        self.vcek_form = Form("SEV-VCEK", f"SEV-{product}", 0, amd=vcek_extensions(product, self.tcb, self.hwid))

    @cached_property
    def root(self) -> bytes:
        return self.ark()

    def ark(self, key: rsa.RSAPrivateKey | None = None, **changes: object) -> bytes:
        return _certificate(replace(self.ark_form, **changes), self.ark_key, key or self.ark_key)  # type: ignore[arg-type]

    def ask(self, key: rsa.RSAPrivateKey | None = None, **changes: object) -> bytes:
        return _certificate(replace(self.ask_form, **changes), self.ask_key, key or self.ark_key)  # type: ignore[arg-type]

    def vcek(
        self,
        key: rsa.RSAPrivateKey | None = None,
        subject_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
        patch: tuple[bytes, bytes] = (b"", b""),
        **changes: object,
    ) -> bytes:
        form = replace(self.vcek_form, **changes)  # type: ignore[arg-type]
        return _certificate(form, subject_key or self.vcek_key, key or self.ask_key, patch)

    def crl(
        self,
        *,
        key: rsa.RSAPrivateKey | None = None,
        issuer: str | None = None,
        revoked: Sequence[int] = (),
        start: int = NOW - DAY,
        end: int = NOW + 10 * DAY,
        critical: x509.ExtensionType | None = None,
    ) -> bytes:
        builder = x509.CertificateRevocationListBuilder(
            _name(issuer or self.ark_form.subject), _moment(start), _moment(end)
        ).add_extension(x509.CRLNumber(1), critical=False)
        if critical is not None:
            builder = builder.add_extension(critical, critical=True)
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_moment(start))
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(key or self.ark_key, hashes.SHA384(), rsa_padding=_PSS).public_bytes(Encoding.DER)

    def members(self, **certificates: bytes) -> dict[str, str]:
        """Return the endorsement's JSON object; certificates that are not given are the chip's own."""
        makers: dict[str, Callable[[], bytes]] = {
            "vcek": self.vcek,
            "ask": self.ask,
            "ark": lambda: self.root,
            "crl": self.crl,
        }
        der = {name: certificates[name] if name in certificates else make() for name, make in makers.items()}
        chain = "".join(ssl.DER_cert_to_PEM_cert(der[name]) for name in ("ask", "ark"))
        return {"vcek": der["vcek"].hex(), "chain": chain, "crl": der["crl"].hex()}

    def endorsement(self, **certificates: bytes) -> SnpEndorsement:
        return SnpEndorsement.parse(self.members(**certificates))

    def report(self, patches: Patches | None = None, **changes: int | bytes) -> bytes:
        """Return a signed report. `patches` overwrite bytes at an offset before it is signed."""
        body = bytearray(0x2A0)
        version = changes.get("version", 3)
        for name, value in ({**self._usual(), **changes}).items():
            if (name == "cpu" and version == 2) or (name.endswith("mitigations") and version != 5):
                continue
            offset, form = _FIELDS[name]
            struct.pack_into(form, body, offset, value)
        for offset, data in (patches or {}).items():
            body[offset : offset + len(data)] = data
        r, s = decode_dss_signature(self.vcek_key.sign(bytes(body), ec.ECDSA(hashes.SHA384())))
        return bytes(body) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)

    def _usual(self) -> dict[str, int | bytes]:
        tcb = encode_tcb(self.tcb)
        firmware = bytes((41, 55, 1, 0))
        return {
            "version": 3,
            "policy": _RESERVED_ONE | PolicyFlag.SINGLE_SOCKET_REQUIRED | 0x0137,
            "algorithm": 1,
            "platform": PlatformFlag.ECC_ENABLED | PlatformFlag.ALIAS_CHECK_COMPLETE,
            "report_data": bytes(range(64)),
            "measurement": b"\x0c" * 48,
            "host_data": b"\x0d" * 32,
            "report_id": b"\x0e" * 32,
            "report_id_ma": b"\xff" * 32,
            "cpu": _CPUS[self.product],
            "chip_id": self.hwid,
            "current_firmware": firmware,
            "committed_firmware": firmware,
            "launch_mitigations": 3,
            "current_mitigations": 7,
            **{f"{name}_tcb": tcb for name in ("reported", "current", "committed", "launch")},
        }


@cache
def chip(product: Product = Product.MILAN) -> SnpChip:
    """One chip for all tests of a run."""
    return SnpChip(product)


def twin(report: bytes) -> bytes:
    """Return the report with the other signature (r, n-s) that whoever has one can compute."""
    s = int.from_bytes(report[0x2E8:0x330], "little")
    return report[:0x2E8] + (P384_ORDER - s).to_bytes(72, "little") + report[0x330:]


def policy(*flags: PolicyFlag, abi: int = 0x0137) -> int:
    """Return a guest policy with exactly these flags."""
    return sum(flags, _RESERVED_ONE | abi)


def encode_tcb(tcb: Tcb) -> bytes:
    if tcb.fmc is None:
        return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))
    return bytes((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))


def vcek_extensions(product: Product, tcb: Tcb, hwid: bytes) -> dict[str, bytes]:
    name = f"{product}-B0".encode()
    levels = {1: tcb.bootloader, 2: tcb.tee, 4: 0, 5: 0, 6: 0, 7: 0, 3: tcb.snp, 8: tcb.microcode}
    if tcb.fmc is not None:
        levels[9] = tcb.fmc
    return {
        f"{_ARC}.1": number(0),
        f"{_ARC}.2": bytes((0x16, len(name))) + name,
        **{f"{_ARC}.3.{last}": number(level) for last, level in levels.items()},
        f"{_ARC}.4": hwid,
    }


def number(value: int) -> bytes:
    """Return a DER INTEGER of one byte."""
    return bytes((2, 1, value)) if value < 0x80 else bytes((2, 2, 0, value))


def _certificate(
    form: Form,
    subject_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    issuer_key: rsa.RSAPrivateKey,
    patch: tuple[bytes, bytes] = (b"", b""),
) -> bytes:
    builder = x509.CertificateBuilder(
        _name(form.issuer),
        _name(form.subject),
        subject_key.public_key(),
        form.serial or 1,
        _moment(form.start),
        _moment(form.end),
    )
    if form.ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if form.signs_certificates or form.signs_crls:
        builder = builder.add_extension(_usage(form), critical=True)
    for oid, value in form.amd.items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    for extension in form.odd:
        builder = builder.add_extension(extension, critical=True)
    der = builder.sign(issuer_key, hashes.SHA384(), rsa_padding=_PSS).public_bytes(Encoding.DER)
    return _signed_again(der, form.serial, patch, issuer_key)


def _signed_again(der: bytes, serial: int, patch: tuple[bytes, bytes], key: rsa.RSAPrivateKey) -> bytes:
    """Put in what no builder will write: the serial number 0, and bytes to replace by others of the same length."""
    signed = der[4 : 8 + int.from_bytes(der[6:8], "big")]
    if not serial:
        # Sequence header, version [0], then the serial number: 02 01 01.
        signed = signed[:9] + b"\x02\x01\x00" + signed[12:]
    signed = signed.replace(*patch) if patch[0] else signed
    signature = key.sign(signed, _PSS, hashes.SHA384())
    return der[:4] + signed + der[4 + len(signed) : -len(signature)] + signature


def _usage(form: Form) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=form.signs_certificates,
        crl_sign=form.signs_crls,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices")]
    if common_name:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(attributes)


def _moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
