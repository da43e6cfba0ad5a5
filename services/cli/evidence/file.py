"""It is responsible for what kind of evidence a file holds, told by its content, and for why one cannot be read.

Nothing is verified here. An evidence document stays bytes: that it can be read is the first step of its appraisal.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from libs import jcs
from libs.errors import MeshError
from libs.identity import certificate as mesh_certificates
from libs.tee import evidence as evidences
from libs.tee import tdx
from libs.tee.evidence import EvidenceMalformed
from libs.tee.ratls.certificate import RatlsEvidenceMissing
from services.cli.terminal.inputs import InputUnreadable

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_HEX = re.compile(rb"(?:0x)?((?:[0-9A-Fa-f]{2})+)")
_LONG_DER_SEQUENCES = (b"\x30\x81", b"\x30\x82", b"\x30\x83")
_QUOTE_VERSIONS = (3, 4, 5)
_QUOTE_HEADER_BYTES = 48


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """Bytes that may be an evidence document: a JSON object, at least at its beginning."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """Bytes that may be a dstack RA-TLS certificate."""

    der: bytes


@dataclass(frozen=True, slots=True)
class QuoteFile:
    """A TDX quote by itself, cut to its parsed length."""

    quote: bytes


EvidenceFile = DocumentFile | CertificateFile | QuoteFile


def recognise(data: bytes) -> EvidenceFile:
    """Tell what the bytes are. Of a PEM chain the first certificate counts, which is the leaf.

    Raises `InputUnreadable` for what is none of the three, `QuoteMalformed` for a quote that is not TDX's or is cut.
    """
    text = data.strip()
    if not text:
        raise InputUnreadable("the file is empty")
    if text.startswith(b"{"):
        return DocumentFile(data)
    if written := _HEX.fullmatch(text):
        return QuoteFile(tdx.cut(bytes.fromhex(written[1].decode())))
    # The binary forms before PEM: a quote carries certificates as PEM, and an RA-TLS certificate carries a quote.
    if len(data) >= _QUOTE_HEADER_BYTES and int.from_bytes(data[:2], "little") in _QUOTE_VERSIONS:
        return QuoteFile(tdx.cut(data))
    if data.startswith(_LONG_DER_SEQUENCES):
        return CertificateFile(data)
    if pem := _PEM.search(text):
        return CertificateFile(_decoded(pem[1]))
    raise InputUnreadable("the file is no evidence document (JSON), no certificate (PEM or DER) and no TDX quote")


def advice(file: EvidenceFile, refusal: MeshError) -> str | None:
    """Say what to do about a file that could not be read, where its content tells more than the refusal."""
    if isinstance(file, DocumentFile) and isinstance(refusal, EvidenceMalformed):
        return _written_again(file.data)
    if isinstance(file, CertificateFile) and isinstance(refusal, RatlsEvidenceMissing):
        return _named_by_digest(file.der)
    return None


def _written_again(data: bytes) -> str | None:
    """A document that only passed through an editor or a pretty-printer, whose digest is therefore another."""
    try:
        canonical = jcs.dumps(jcs.loads_object(data))
        digest = evidences.parse(canonical).digest.hex()
    except MeshError:
        return None
    if data.rstrip(b"\r\n") == canonical:
        return f"the file has a line end after the document: remove it (head -c {len(canonical)} FILE); digest {digest}"
    return (
        "the document was written again, with other spaces or another order, and evidence is known by the digest of "
        f"its bytes: take them as they came, or restore them with jq -cSj . FILE; their digest is then {digest}"
    )


def _named_by_digest(der: bytes) -> str | None:
    try:
        certificate = mesh_certificates.parse(der)
    except MeshError:
        return None
    if certificate.evidence_digest is None:
        return f"this is the mesh certificate of {certificate.spiffe_id}: people have no evidence"
    return (
        f"this is the mesh certificate of {certificate.spiffe_id}, which names its evidence by digest: "
        f"teemesh evidence fetch --digest {certificate.evidence_digest.hex()} --out FILE"
    )


def _decoded(body: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except ValueError as error:
        raise InputUnreadable("the certificate's PEM is not base64") from error


def digest_of(file: EvidenceFile) -> bytes:
    """SHA-256 of the document, of the certificate's DER, or of the cut quote."""
    match file:
        case DocumentFile(data):
            return hashlib.sha256(data).digest()
        case CertificateFile(der):
            return hashlib.sha256(der).digest()
        case QuoteFile(quote):
            return hashlib.sha256(quote).digest()
