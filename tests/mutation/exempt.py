"""Checks that no row can rest on, each with why. Taking one of them away changes nothing that a caller sees."""

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
