"""Checks, and words of their conditions, that no row can rest on, each with why.

Taking one of them away changes nothing that a caller sees.
"""

from __future__ import annotations

EXEMPT = {
    "binding._require_nonce: ValueError(f'a nonce has {NONCE_BYTES} bytes, not {len(nonce)}')": (
        "a mistake of the caller, who gets no refusal of evidence for it"
    ),
    'nvidia.jwks._coordinate: JwksMalformed("a key\'s coordinate is base64url of 48 bytes") [1]': (
        "64 characters of the alphabet are always the one form of 48 bytes"
    ),
    "nvidia.token.verify_bundle: ValueError(f'a nonce has {NONCE_BYTES} bytes, not {len(nonce)}')": (
        "a mistake of the caller, who gets no refusal of evidence for it"
    ),
    'nvidia.chain._report_key: ValueError("the first certificate\'s key may not sign reports")': (
        "every key of the chain is on P-384 by then; the type checker wants it said again"
    ),
    "ratls.certificate._inflated: RatlsEventLogMalformed('the event log cannot be inflated')": (
        "what cannot be inflated does not end either, which the next check refuses for the same reason"
    ),
    "snp.certificates._content: ValueError('a certificate or CRL ends too early')": (
        "the X.509 parser refuses what is cut off, for the same reason"
    ),
    "snp.endorsement._crl: ValueError(f'crl has more than {CRL_BYTES} bytes')": (
        "lengths of two octets, all that are read, already bound a CRL to three bytes more"
    ),
}
"""By the site's name."""

EQUIVALENT = {
    "challenge.Challenge.verify_signed: `self.certificate_der is None` of "
    "`self.certificate_der is None or self.signature is None`": (
        "whoever reads a challenge finds both or neither; the type checker wants both said"
    ),
    "challenge.Challenge.verify_signed: `self.signature is None` of "
    "`self.certificate_der is None or self.signature is None`": (
        "whoever reads a challenge finds both or neither; the type checker wants both said"
    ),
    "nvidia.chain._load: `len(pem) > MAX_CHAIN_BYTES` of `len(pem) > MAX_CHAIN_BYTES or not pem.isascii()`": (
        "evidence with a chain of so many characters is not even read"
    ),
    "nvidia.jwks._coordinate: `len(data) != _COORDINATE_BYTES` of "
    "`len(data) != _COORDINATE_BYTES or urlsafe_b64encode(data).decode() != text`": (
        "64 characters of the alphabet are always the one form of 48 bytes"
    ),
    "nvidia.jwks._coordinate: `urlsafe_b64encode(data).decode() != text` of "
    "`len(data) != _COORDINATE_BYTES or urlsafe_b64encode(data).decode() != text`": (
        "64 characters of the alphabet are always the one form of 48 bytes"
    ),
    "nvidia.keys.verify_key_chain: `not isinstance(key.curve, ec.SECP384R1)` of "
    "`not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1)`": (
        "a key on another curve is refused with the form of every certificate, for the same reason"
    ),
    "nvidia.keys._certificates: `len(value) > MAX_CERTIFICATES` of "
    "`not isinstance(value, list) or len(value) > MAX_CERTIFICATES`": (
        "certificates are counted again once they are decoded, for the same reason; this saves the decoding"
    ),
    "nvidia.report._measurements: `end > len(record)` of "
    "`specification != _DMTF_MEASUREMENT or size != value_size + 3 or end > len(record)`": (
        "a block that goes on behind the record does not end where that does, which is refused for the same reason"
    ),
    "ratls.certificate._inflated: `len(text) <= MAX_EVENT_LOG_BYTES` of "
    "`len(text) <= MAX_EVENT_LOG_BYTES and (not inflater.eof or inflater.unused_data)`": (
        "a log that is too long is refused by the next check, for the same reason in other words"
    ),
    "snp.certificates.load: `start == end` of `serial < 0 or start == end`": (
        "the X.509 parser refuses a number without a byte, for the same reason"
    ),
    "snp.certificates._content: `header[0] != tag` of `len(header) < 4 or header[0] != tag`": (
        "the X.509 parser refuses what has another tag, for the same reason"
    ),
    "snp.report.parse: `key_info & ~_KEY_INFO_MASK` of `reserved or key_info & ~_KEY_INFO_MASK`": (
        "with a reserved bit the signing key is none that is known, which is refused for the same reason"
    ),
}
"""By the operand's name."""
