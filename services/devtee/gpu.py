"""Development GPUs: responsible for device identities under a mock vendor root, and for the reports GPUs sign.

Shapes are NVIDIA's: five P-384 certificates from firmware leaf to device root that never end, and one SPDM 1.1
measurement exchange per report. Keys are fresh random values; every name says "Development".
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha384
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from libs import jcs
from services.devtee import der
from services.devtee.pki import Signer

HWMODEL = "DEV100 A01 GSP BROM"
DRIVER_VERSION = "580.159.03"
VBIOS_VERSION = "96.00.9F.00.01"
MEASUREMENTS = 64
FWID_EXTENSION = x509.ObjectIdentifier("2.23.133.5.4.1")

_SHA384 = "2.16.840.1.101.3.4.2.2"
_NONCE_BYTES = 32
_NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_BACKDATE = timedelta(days=1)
_ABSENT_FEATURE = b"\x55"


@dataclass(frozen=True, slots=True)
class ReportShape:
    """What a report says. The default is a GPU whose measurements are the vendor's reference values."""

    driver: str = DRIVER_VERSION
    vbios: str = VBIOS_VERSION
    measurements: Mapping[int, bytes] = field(default_factory=dict)
    """By index, instead of the reference value: a GPU that runs something else."""
    fwid: bytes | None = None
    """Another firmware than the one its certificate names."""


@dataclass(frozen=True, slots=True)
class GpuVendor:
    """The authorities above every development GPU of one state directory."""

    root: Signer
    identity: Signer
    provisioner: Signer

    @classmethod
    def create(cls, now: int) -> GpuVendor:
        """Make fresh keys and their certificates. `now` is in Unix seconds."""
        moment = datetime.fromtimestamp(now, UTC)
        root_key, root_name = (
            ec.generate_private_key(ec.SECP384R1()),
            development_name("Teemesh Development Device Identity CA"),
        )
        root = Signer(root_key, _certificate(root_name, root_key.public_key(), root_name, root_key, moment))
        identity = _issue(root, development_name("Teemesh Development DEV100 Identity"), moment)
        provisioner = _issue(identity, development_name("Teemesh Development DEV100 Provisioner ICA 1"), moment)
        return cls(root, identity, provisioner)

    def make_gpu(self, now: int) -> Gpu:
        """Provision one GPU: its boot ROM gets a key, and certifies the key of the firmware that it started."""
        moment = datetime.fromtimestamp(now, UTC)
        boot_rom = _issue(self.provisioner, development_name(HWMODEL, secrets.token_hex(9).upper()), moment)
        key = ec.generate_private_key(ec.SECP384R1())
        fwid = sha384(b"teemesh development GPU firmware").digest()
        serial = x509.random_serial_number()
        name = development_name("Teemesh Development DEV100 A01 GSP FMC LF", f"{serial:X}")
        leaf = _certificate(
            name,
            key.public_key(),
            boot_rom.certificate.subject,
            boot_rom.key,
            moment,
            serial=serial,
            fwid=_fwid_extension(boot_rom.key.public_key(), fwid),
        )
        return Gpu(self, boot_rom, Signer(key, leaf), fwid)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU in confidential mode."""

    vendor: GpuVendor
    boot_rom: Signer
    firmware: Signer
    fwid: bytes

    @property
    def ueid(self) -> str:
        """As tokens name the device: the decimal serial number of the leaf."""
        return str(self.firmware.certificate.serial_number)

    @property
    def chain(self) -> str:
        """PEM, leaf first, root included."""
        signers = (self.firmware, self.boot_rom, self.vendor.provisioner, self.vendor.identity, self.vendor.root)
        return "".join(signer.pem for signer in signers)

    def report(self, nonce: bytes, shape: ReportShape | None = None) -> bytes:
        """Answer a 32-byte nonce with request, response and signature. Raises `ValueError` for another size."""
        if len(nonce) != _NONCE_BYTES:
            raise ValueError(f"a nonce has {_NONCE_BYTES} bytes")
        shape = shape or ReportShape()
        opaque = self._opaque(shape)
        record = b"".join(
            struct.pack("<BBHBH", index, 1, 51, 1, 48) + shape.measurements.get(index, reference_measurement(index))
            for index in range(1, MEASUREMENTS + 1)
        )
        request = bytes.fromhex("11e001ff") + nonce + b"\0"
        response = bytes.fromhex("11600000") + bytes([MEASUREMENTS]) + len(record).to_bytes(3, "little") + record
        signed = request + response + secrets.token_bytes(_NONCE_BYTES) + struct.pack("<H", len(opaque)) + opaque
        return signed + sign_raw(self.firmware.key, signed)

    def _opaque(self, shape: ReportShape) -> bytes:
        *head, last = bytes.fromhex(shape.vbios.replace(".", ""))
        fields = {
            6: bytes(reversed(head)) + bytes([last]) + bytes(3),
            3: shape.driver.encode() + b"\0",
            11: _ABSENT_FEATURE,
            20: self.fwid if shape.fwid is None else shape.fwid,
            21: _ABSENT_FEATURE,
        }
        return b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in fields.items())


def reference_measurement(index: int) -> bytes:
    """The value that the development vendor's firmware and driver give at an index."""
    return sha384(f"teemesh development GPU measurement {index}".encode()).digest()


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA over SHA-384 as `r || s`, 48 bytes each."""
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def encode_gpus(vendor: GpuVendor, gpus: tuple[Gpu, ...]) -> bytes:
    """Everything that must survive a restart, secret keys included."""
    return jcs.dumps(
        {
            "root": signer_document(vendor.root),
            "identity": signer_document(vendor.identity),
            "provisioner": signer_document(vendor.provisioner),
            "gpus": [
                {
                    "boot_rom": signer_document(gpu.boot_rom),
                    "firmware": signer_document(gpu.firmware),
                    "fwid": gpu.fwid.hex(),
                }
                for gpu in gpus
            ],
        }
    )


def decode_gpus(data: bytes) -> tuple[GpuVendor, tuple[Gpu, ...]]:
    """Read `encode_gpus`'s bytes. Raises `JsonMalformed`, `KeyError`, `TypeError` or `ValueError` for others."""
    document = jcs.loads_object(data)
    vendor = GpuVendor(*(parse_signer(document[name]) for name in ("root", "identity", "provisioner")))
    return vendor, tuple(
        Gpu(vendor, parse_signer(gpu["boot_rom"]), parse_signer(gpu["firmware"]), bytes.fromhex(gpu["fwid"]))
        for gpu in document["gpus"]
    )


def signer_document(signer: Signer) -> dict[str, str]:
    """The secret key and its certificate, PEM."""
    key = signer.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"key": key.decode(), "certificate": signer.pem}


def parse_signer(document: Any) -> Signer:
    """Read what `signer_document` wrote. Raises `KeyError`, `TypeError` or `ValueError` for others."""
    key = serialization.load_pem_private_key(document["key"].encode(), password=None)
    certificate = x509.load_pem_x509_certificate(document["certificate"].encode())
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise ValueError("a certificate that is not its key's")
    return Signer(key, certificate)


def _issue(issuer: Signer, name: x509.Name, now: datetime) -> Signer:
    key = ec.generate_private_key(ec.SECP384R1())
    return Signer(key, _certificate(name, key.public_key(), issuer.certificate.subject, issuer.key, now))


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    serial: int | None = None,
    fwid: bytes | None = None,
) -> x509.Certificate:
    """An authority, or with `fwid` the leaf that signs reports; the leaf has no basic constraints, as NVIDIA's."""
    is_authority = fwid is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(_NEVER)
        .add_extension(key_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if fwid is None:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    else:
        builder = builder.add_extension(x509.UnrecognizedExtension(FWID_EXTENSION, fwid), critical=False)
    return builder.sign(issuer_key, hashes.SHA384())


def _fwid_extension(boot_rom: ec.EllipticCurvePublicKey, fwid: bytes) -> bytes:
    """TCG's CompositeDeviceID: version, the key of the boot ROM, and the firmware's digest."""
    spki = boot_rom.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return der.sequence(der.integer(1), spki, der.sequence(der.object_identifier(_SHA384), der.octets(fwid)))


def key_usage(is_authority: bool) -> x509.KeyUsage:
    """To issue, or to sign."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def development_name(common_name: str, serial: str | None = None) -> x509.Name:
    """A name under the development vendor's organization."""
    attributes = [
        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Teemesh Development"),
    ]
    if serial is not None:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial))
    return x509.Name(attributes)
