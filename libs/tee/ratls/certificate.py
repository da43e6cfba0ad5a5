"""Responsible for dstack's RA-TLS certificates: the evidence in their extensions, and the key that it must bind.

dstack's extensions hold a DER OCTET STRING inside the one that every extension has. Whoever issued the certificate
wrote its names, its dates, its application id and its usage: they are claims until `verify_issuer`, and nothing here
rests on them. The evidence binds the certificate's key and no challenge, so it proves no freshness by itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import binding, eventlog, tdx
from libs.tee.eventlog import Event
from libs.tee.ratls import blob

# The largest seen from real machines has 10 KiB.
MAX_CERTIFICATE_BYTES = 64 * 1024
MAX_EVENT_LOG_BYTES = 16 * 1024
_ARC = "1.3.6.1.4.1.62397.1"
_QUOTE = x509.ObjectIdentifier(f"{_ARC}.1")
_EVENT_LOG = x509.ObjectIdentifier(f"{_ARC}.2")
_APP_ID = x509.ObjectIdentifier(f"{_ARC}.3")
_USAGE = x509.ObjectIdentifier(f"{_ARC}.4")
_ATTESTATION = x509.ObjectIdentifier(f"{_ARC}.8")
# Says again, in the issuer's words, what the evidence proves: known, and never read.
_APP_INFO = x509.ObjectIdentifier(f"{_ARC}.9")
_KNOWN = frozenset({_QUOTE, _EVENT_LOG, _APP_ID, _USAGE, _ATTESTATION, _APP_INFO})
_COMPRESSED = b"ELGZv1"
_GZIP_WINDOW = 31
_APP_ID_BYTES = 20
# The last is what the library warns with of a form that it will refuse one day, where warnings are errors.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)


class RatlsCertificateMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "RATLS_CERTIFICATE_MALFORMED"


class RatlsEvidenceMissing(MeshError):
    """The certificate carries no evidence, or a quote without its log, or a log without its quote."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_EVIDENCE_MISSING"


class RatlsEvidenceAmbiguous(MeshError):
    """The certificate carries evidence twice: two readers could each believe another one."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_EVIDENCE_AMBIGUOUS"


class RatlsEventLogMalformed(MeshError):
    """The compressed event log cannot be inflated, or is too large when it is."""

    code = Code.INVALID_ARGUMENT
    reason = "RATLS_EVENT_LOG_MALFORMED"


class RatlsKeyNotBound(MeshError):
    """The quote does not bind the certificate's key: it may be anybody's, taken from another certificate."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_KEY_NOT_BOUND"


class RatlsReportDataMismatch(MeshError):
    """The stack states other report data than the quote carries."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_REPORT_DATA_MISMATCH"


class RatlsCertificateNotCurrent(MeshError):
    """The certificate has expired or is not valid yet: ask for another one, or check the clock."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_CERTIFICATE_NOT_CURRENT"


class RatlsIssuerNotTrusted(MeshError):
    """Another authority than the trusted one issued the certificate, so its dates are anybody's word."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_ISSUER_NOT_TRUSTED"


class RatlsCertificateTooOld(MeshError):
    """The certificate is still valid, but its evidence is older than the caller accepts."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_CERTIFICATE_TOO_OLD"


class RatlsAppIdMismatch(MeshError):
    """The measured application is not the expected one, or not the one that the certificate names."""

    code = Code.PERMISSION_DENIED
    reason = "RATLS_APP_ID_MISMATCH"


@dataclass(frozen=True, slots=True)
class RatlsEvidence:
    """What a certificate presents. Build with `read_certificate`; nothing in it is verified yet."""

    # Cut to its parsed length.
    quote: bytes
    # Register 3 alone: registers 0 to 2 cannot be replayed from a certificate and are judged whole.
    event_log: tuple[Event, ...]
    # SubjectPublicKeyInfo, DER, of the certificate's key.
    spki: bytes
    # None in the legacy form, which does not state it.
    stated_report_data: bytes | None
    # The issuer's claims.
    claimed_app_id: bytes | None
    claimed_usage: str | None
    # Unix seconds.
    not_before: int
    not_after: int

    def verify_report_data(self, report_data: bytes) -> None:
        """Prove that these 64 bytes, from the verified quote, bind the certificate's key.

        Raises `RatlsKeyNotBound`, `RatlsReportDataMismatch`.
        """
        if report_data != binding.ratls_report_data(self.spki):
            raise RatlsKeyNotBound("the quote does not bind the certificate's key")
        if self.stated_report_data not in (None, report_data):
            raise RatlsReportDataMismatch("the attestation states other report data than its quote carries")

    def verify_age(self, now: int, maximum_age_seconds: int) -> None:
        """Prove that the certificate is valid `now` and began at most so long ago.

        Raises `RatlsCertificateNotCurrent`, `RatlsCertificateTooOld`. dstack dates a certificate back to 1975 unless
        it is asked for another start: a peer that is to pass a useful bound has to ask.
        """
        if not self.not_before <= now <= self.not_after:
            raise RatlsCertificateNotCurrent("the certificate is not valid now: ask for another, or check the clock")
        if now - self.not_before > maximum_age_seconds:
            raise RatlsCertificateTooOld(
                f"the certificate began {now - self.not_before} s ago, at most {maximum_age_seconds} s are accepted"
            )

    def verify_app_id(self, measured: bytes, expected: bytes | None = None) -> None:
        """Prove that the measured application is the one that is expected and the one that the certificate names.

        Call it with the identity from the replayed log. An application id may be assigned to any code: this says who
        is meant, never what runs. Raises `RatlsAppIdMismatch`.
        """
        if expected not in (None, measured):
            raise RatlsAppIdMismatch("the measured application is not the expected one")
        if self.claimed_app_id not in (None, measured):
            raise RatlsAppIdMismatch("the certificate names another application than was measured")


def verify_issuer(der: bytes, authority_der: bytes) -> None:
    """Prove that this authority (DER) issued the certificate itself; only then its dates are more than words.

    Raises `RatlsIssuerNotTrusted`.
    """
    try:
        authority = x509.load_der_x509_certificate(authority_der)
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not constraints.ca:
            raise ValueError("the issuer is no authority")
        x509.load_der_x509_certificate(der).verify_directly_issued_by(authority)
    except (*_UNREADABLE, x509.DuplicateExtension, x509.ExtensionNotFound, InvalidSignature) as error:
        raise RatlsIssuerNotTrusted("the certificate was not issued by the authority that is trusted") from error


def read_certificate(der: bytes) -> RatlsEvidence:
    """Read one certificate, **unverified**: neither its issuer's signature nor its evidence.

    Raises the errors of this module that are about reading, those of `blob.parse`, `JsonMalformed`.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise RatlsCertificateMalformed(
            f"the certificate has {len(der)} bytes, at most {MAX_CERTIFICATE_BYTES} are read"
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        if certificate.serial_number <= 0:
            # The library only warns of it, and will refuse it one day; RFC 5280 section 4.1.2.2 refuses it now.
            raise ValueError("the serial number is not positive")
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        contents = _contents(certificate)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        usage = contents.get(_USAGE)
        claimed_usage = None if usage is None else usage.decode()
    except x509.DuplicateExtension as error:
        raise RatlsEvidenceAmbiguous("the certificate has an extension twice") from error
    except _UNREADABLE as error:
        raise RatlsCertificateMalformed("the certificate cannot be read") from error
    claimed_app_id = contents.get(_APP_ID)
    if claimed_app_id is not None and len(claimed_app_id) != _APP_ID_BYTES:
        raise RatlsCertificateMalformed(f"the certificate's application id has {len(claimed_app_id)} bytes")
    quote, log, report_data = _evidence(contents)
    return RatlsEvidence(
        quote=quote,
        event_log=blob.runtime_log(log),
        spki=spki,
        stated_report_data=report_data,
        claimed_app_id=claimed_app_id,
        claimed_usage=claimed_usage,
        not_before=int(start.timestamp()),
        not_after=int(end.timestamp()),
    )


def _contents(certificate: x509.Certificate) -> Mapping[x509.ObjectIdentifier, bytes]:
    """Return what dstack's extensions hold. Raises `ValueError`."""
    contents: dict[x509.ObjectIdentifier, bytes] = {}
    for extension in certificate.extensions:
        if not isinstance(extension.value, x509.UnrecognizedExtension):
            continue
        if extension.oid in _KNOWN:
            contents[extension.oid] = asn1.decode_der(bytes, extension.value.value)
        elif extension.critical:
            # RFC 5280 section 4.2: what is critical and not understood makes the certificate unusable.
            raise ValueError("a critical extension is not understood")
    return contents


def _evidence(contents: Mapping[x509.ObjectIdentifier, bytes]) -> tuple[bytes, tuple[Event, ...], bytes | None]:
    """Return the quote, the log, and the report data that the stack states."""
    legacy = contents.keys() & {_QUOTE, _EVENT_LOG}
    if _ATTESTATION in contents:
        if legacy:
            raise RatlsEvidenceAmbiguous("the certificate carries evidence in the old form and in the new one")
        attestation = blob.parse(contents[_ATTESTATION])
        return attestation.quote, attestation.event_log, attestation.report_data
    if len(legacy) != len((_QUOTE, _EVENT_LOG)):
        raise RatlsEvidenceMissing("the certificate carries no evidence, or only half of it")
    log = eventlog.parse(jcs.loads(_inflated(contents[_EVENT_LOG])))
    return tdx.cut(contents[_QUOTE]), log, None


def _inflated(content: bytes) -> bytes:
    """Return the log's JSON text, never more than `MAX_EVENT_LOG_BYTES` of it."""
    text = content
    if content.startswith(_COMPRESSED):
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        try:
            # One byte more than is accepted tells a log that is too large from one that just fits.
            text = inflater.decompress(content[len(_COMPRESSED) :], MAX_EVENT_LOG_BYTES + 1)
        except zlib.error as error:
            raise RatlsEventLogMalformed("the event log cannot be inflated") from error
        if len(text) <= MAX_EVENT_LOG_BYTES and (not inflater.eof or inflater.unused_data):
            raise RatlsEventLogMalformed("the compressed event log ends too early or is followed by something")
    if len(text) > MAX_EVENT_LOG_BYTES:
        raise RatlsEventLogMalformed(f"the event log has more than {MAX_EVENT_LOG_BYTES} bytes")
    return text
