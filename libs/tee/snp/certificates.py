"""Responsible for AMD's certificates: reading them as they are issued, their signatures, and what a VCEK states.

The form is that of AMD 57230: RSA-PSS with SHA-384 throughout the chain, an ECDSA P-384 key in the VCEK, and the
chip's identity and patch levels in extensions under 1.3.6.1.4.1.3704.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from libs.errors import Code, MeshError
from libs.tee.snp.report import Product, Tcb

# AMD's own have 1.3 to 1.7 KiB.
CERTIFICATE_BYTES = 8192

_SALT_BYTES = 48
_INTEGER, _BIT_STRING, _OCTET_STRING, _IA5_STRING, _SEQUENCE, _VERSION = 0x02, 0x03, 0x04, 0x16, 0x30, 0xA0
_ARC = "1.3.6.1.4.1.3704.1"
_STRUCT_VERSION, _PRODUCT_NAME, _HWID = f"{_ARC}.1", f"{_ARC}.2", f"{_ARC}.4"
_BOOTLOADER, _TEE, _SNP, _MICROCODE, _FMC = (f"{_ARC}.3.{last}" for last in (1, 2, 3, 8, 9))
_RESERVED_LEVELS = tuple(f"{_ARC}.3.{last}" for last in (4, 5, 6, 7))
_STRUCT_VERSIONS = (0, 1)
_UNDERSTOOD = (x509.BasicConstraints, x509.KeyUsage)


class ChainInvalid(MeshError):
    """A certificate of the chain is not signed by the next one, or is not what its place demands."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_CHAIN_INVALID"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that can be read, **unverified**: names and extensions MUST NOT be read before `is_signed_by`."""

    der: bytes
    # The bytes that its issuer signed.
    signed: bytes = field(compare=False)
    serial: int = field(compare=False)
    # Everything but the serial number is as issued.
    fields: x509.Certificate = field(compare=False)


@dataclass(frozen=True, slots=True)
class Vcek:
    """What a VCEK's certificate says of one chip at one patch level."""

    product: Product
    tcb: Tcb
    # 64 bytes; 8 on Turin.
    hwid: bytes
    key: ec.EllipticCurvePublicKey


def load(der: bytes) -> Certificate:
    """Read one certificate. Raises `ValueError`; verifies nothing.

    Every VCEK has the serial number 0, which RFC 5280 forbids and the X.509 parser is about to refuse. So its fields
    are read from a copy with the serial number 1, while the signature is checked over the bytes as they were issued.
    """
    if len(der) > CERTIFICATE_BYTES:
        raise ValueError(f"a certificate has more than {CERTIFICATE_BYTES} bytes")
    signed, algorithm = split(der)
    at, _ = _content(der, signed.start, _SEQUENCE)
    if der[at : at + 1] == bytes((_VERSION,)):
        at = _content(der, at, _VERSION)[1]
    start, end = _content(der, at, _INTEGER)
    serial = int.from_bytes(der[start:end], "big", signed=True)
    if serial < 0 or start == end:
        raise ValueError("a certificate has no serial number, or a negative one")
    if der[end : _content(der, end, _SEQUENCE)[1]] != algorithm:
        raise ValueError("a certificate names two signature algorithms")
    readable = der if serial else der[: end - 1] + b"\x01" + der[end:]
    try:
        fields = x509.load_der_x509_certificate(readable)
    except x509.InvalidVersion as error:
        raise ValueError("a certificate is of an unknown version") from error
    return Certificate(der, der[signed], serial, fields)


def split(der: bytes) -> tuple[slice, bytes]:
    """Return where the signed part of a certificate or CRL lies, and the algorithm named after it. Raises `ValueError`.

    Nothing that the signature does not cover may be written in a second way: the parser would let the signature's
    length in bits vary.
    """
    start, _ = _content(der, 0, _SEQUENCE)
    _, end = _content(der, start, _SEQUENCE)
    _, algorithm_end = _content(der, end, _SEQUENCE)
    signature, _ = _content(der, algorithm_end, _BIT_STRING)
    if der[signature : signature + 1] != b"\0":
        raise ValueError("a signature is not a number of whole bytes")
    return slice(start, end), der[end:algorithm_end]


def _content(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Return where the content of the DER element at `at` starts and ends."""
    header = der[at : at + 4]
    if len(header) < 4 or header[0] != tag:
        raise ValueError("a certificate or CRL does not have the form of one")
    # No certificate that is read here needs a longer length than two octets.
    match header[1]:
        case 0x81:
            start, length = at + 3, header[2]
        case 0x82:
            start, length = at + 4, int.from_bytes(header[2:], "big")
        case short if short < 0x80:
            start, length = at + 2, short
        case _:
            raise ValueError("a certificate or CRL does not have the form of one")
    if start + length > len(der):
        raise ValueError("a certificate or CRL ends too early")
    return start, start + length


def is_signed_by(signed: bytes, signature: bytes, issuer: Certificate) -> bool:
    """Say whether the issuer's key made this signature, in the one way that AMD signs. The issuer MUST be trusted."""
    key = issuer.fields.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(signature, signed, padding.PSS(padding.MGF1(hashes.SHA384()), _SALT_BYTES), hashes.SHA384())
    except InvalidSignature:
        return False
    return True


def extensions(holder: x509.Certificate | x509.CertificateRevocationList) -> x509.Extensions:
    """Return the extensions when every one that demands to be understood is. Raises `ValueError`."""
    try:
        found = holder.extensions
    except (TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError("there are extensions that cannot be read") from error
    if any(extension.critical and not isinstance(extension.value, _UNDERSTOOD) for extension in found):
        raise ValueError("there is a critical extension that is not known")
    return found


def read_vcek(certificate: Certificate) -> Vcek:
    """Return what a VCEK whose signature holds states. Raises `ChainInvalid`."""
    key = certificate.fields.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ChainInvalid("the VCEK's key is not on P-384")
    try:
        stated = {
            extension.oid.dotted_string: extension.value.value
            for extension in extensions(certificate.fields)
            if isinstance(extension.value, x509.UnrecognizedExtension)
        }
        if _number(stated, _STRUCT_VERSION) not in _STRUCT_VERSIONS:
            raise ValueError("the VCEK's extensions are of an unknown version")
        if any(_number(stated, oid) for oid in _RESERVED_LEVELS if oid in stated):
            raise ValueError("the VCEK states a reserved patch level")
        product = _product(stated)
        return Vcek(product, _tcb(stated, product), _hwid(stated, product), key)
    except ValueError as error:
        raise ChainInvalid(str(error)) from error


def _value(stated: Mapping[str, bytes], oid: str) -> bytes:
    if oid not in stated:
        raise ValueError(f"the VCEK lacks the extension {oid}")
    return stated[oid]


def _number(stated: Mapping[str, bytes], oid: str) -> int:
    """Return a DER INTEGER from 0 to 255."""
    match tuple(_value(stated, oid)):
        case (0x02, 1, number) if number < 0x80:
            return number
        case (0x02, 2, 0, number) if number >= 0x80:
            return number
    raise ValueError(f"the VCEK's extension {oid} is not a number of one byte")


def _product(stated: Mapping[str, bytes]) -> Product:
    """Return the product line: the name carries the chip's stepping behind it, for example Milan-B0."""
    value = _value(stated, _PRODUCT_NAME)
    name, _, _ = value[2:].partition(b"-")
    if value[:2] != bytes((_IA5_STRING, len(value) - 2 & 0xFF)):
        raise ValueError("the VCEK's product name is not an IA5String")
    for product in Product:
        if name == product.encode():
            return product
    raise ValueError("the VCEK is of an unknown product")


def _tcb(stated: Mapping[str, bytes], product: Product) -> Tcb:
    has_fmc = product is Product.TURIN
    if _FMC in stated and not has_fmc:
        raise ValueError("the VCEK states a patch level that its product does not have")
    return Tcb(
        bootloader=_number(stated, _BOOTLOADER),
        tee=_number(stated, _TEE),
        snp=_number(stated, _SNP),
        microcode=_number(stated, _MICROCODE),
        fmc=_number(stated, _FMC) if has_fmc else None,
    )


def _hwid(stated: Mapping[str, bytes], product: Product) -> bytes:
    """Return the chip's identity, which AMD has issued both bare and wrapped in an OCTET STRING."""
    value = _value(stated, _HWID)
    size = 8 if product is Product.TURIN else 64
    if len(value) == size + 2 and value[:2] == bytes((_OCTET_STRING, size)):
        return value[2:]
    if len(value) != size:
        raise ValueError(f"the VCEK's hardware identity does not have {size} bytes")
    return value
