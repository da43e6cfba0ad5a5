"""Responsible for the formula that binds evidence to a challenge, a key and claims.

The tags separate the uses: no value made for one of them can be read as another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from libs import jcs

_EVIDENCE_TAG = b"teemesh/evidence/v1\0"
_GPU_TAG = b"teemesh/gpu/v1\0"
_RATLS_TAG = b"ratls-cert:"
NONCE_BYTES = 32


def report_data(nonce: bytes, spki_der: bytes, claims: Mapping[str, Any]) -> bytes:
    """Return the 64 bytes that a quote must carry for this nonce, key and claims."""
    _require_nonce(nonce)
    return hashlib.sha512(
        _EVIDENCE_TAG + nonce + hashlib.sha256(spki_der).digest() + hashlib.sha256(jcs.dumps(claims)).digest()
    ).digest()


def gpu_nonce(nonce: bytes, spki_der: bytes) -> bytes:
    """Return the 32 bytes that GPU evidence must answer for this nonce and key."""
    _require_nonce(nonce)
    return hashlib.sha256(_GPU_TAG + nonce + hashlib.sha256(spki_der).digest()).digest()


def ratls_report_data(spki_der: bytes) -> bytes:
    """Return the 64 bytes of dstack's own RA-TLS form, which binds a key and no challenge: it proves no freshness."""
    return hashlib.sha512(_RATLS_TAG + spki_der).digest()


def _require_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
