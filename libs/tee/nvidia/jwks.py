"""Responsible for an issuer's published signing keys: one JSON Web Key Set in, key id to key and certificates out.

The set is not signed. Whoever pins its keys MUST have it from the issuer itself; reading proves only its form, and
that a key which comes with certificates is the one in the first of them.
"""

from __future__ import annotations

import re
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee.nvidia.chain import UNREADABLE, read_certificate
from libs.tee.nvidia.keys import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES

# NVIDIA publishes about 32 keys with their certificates, 80 KiB, and renews them every day.
MAX_BYTES = 512 * 1024
MAX_KEYS = 128
_MAX_KEY_ID_CHARACTERS = 128
_COORDINATE_BYTES = 48
_COORDINATE = re.compile(r"[A-Za-z0-9_-]{64}")
_REQUIRED = frozenset({"kty", "crv", "kid", "x", "y"})
# What a member must say where it is given; None leaves it open.
_OPTIONAL = {"alg": "ES384", "use": "sig", "x5c": None}


class JwksMalformed(MeshError):
    """The document is not a set of P-384 signing keys."""

    code = Code.INVALID_ARGUMENT
    reason = "GPU_JWKS_MALFORMED"


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A signing key as its issuer publishes it."""

    # SubjectPublicKeyInfo, DER.
    public_key: bytes
    # DER, leaf first; empty where the issuer publishes none.
    certificates: tuple[bytes, ...]


def read_jwks(document: bytes) -> Mapping[str, PublishedKey]:
    """Return the keys by id. Raises `JwksMalformed`.

    Every key must be usable: a set with one that is not is refused as a whole.
    """
    if len(document) > MAX_BYTES:
        raise JwksMalformed(f"a key set has at most {MAX_BYTES} bytes")
    try:
        entries = jcs.loads_object(document).get("keys")
    except jcs.JsonMalformed as error:
        raise JwksMalformed("a key set is one strict JSON object") from error
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_KEYS:
        raise JwksMalformed(f"a key set lists 1 to {MAX_KEYS} keys")
    keys = dict(_read_key(entry) for entry in entries)
    if len(keys) != len(entries):
        raise JwksMalformed("a key set names a key twice")
    return keys


def _read_key(entry: Any) -> tuple[str, PublishedKey]:
    if not isinstance(entry, dict) or _REQUIRED - entry.keys() or entry.keys() - _REQUIRED - _OPTIONAL.keys():
        raise JwksMalformed("a key has other members than a P-384 signing key")
    if entry["kty"] != "EC" or entry["crv"] != "P-384":
        raise JwksMalformed("a key is not on the curve P-384")
    if any(text is not None and entry.get(name, text) != text for name, text in _OPTIONAL.items()):
        raise JwksMalformed("a key is for another use than ES384 signatures")
    key_id = entry["kid"]
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= _MAX_KEY_ID_CHARACTERS or not key_id.isascii():
        raise JwksMalformed(f"a key id is ASCII of 1 to {_MAX_KEY_ID_CHARACTERS} characters")
    numbers = ec.EllipticCurvePublicNumbers(_coordinate(entry["x"]), _coordinate(entry["y"]), ec.SECP384R1())
    try:
        spki = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise JwksMalformed("a key is no point on its curve") from error
    certificates = _certificates(entry["x5c"]) if "x5c" in entry else ()
    if certificates and _certified_key(certificates[0]) != spki:
        raise JwksMalformed("a key is not the one in its own certificate")
    return key_id, PublishedKey(spki, certificates)


def _coordinate(text: Any) -> int:
    if not isinstance(text, str) or _COORDINATE.fullmatch(text) is None:
        raise JwksMalformed("a key's coordinate is base64url of 48 bytes")
    data = urlsafe_b64decode(text)
    if len(data) != _COORDINATE_BYTES or urlsafe_b64encode(data).decode() != text:
        raise JwksMalformed("a key's coordinate is base64url of 48 bytes")
    return int.from_bytes(data, "big")


def _certificates(texts: Any) -> tuple[bytes, ...]:
    """Decode `x5c` (RFC 7517 section 4.7): base64 and not base64url, and no line breaks."""
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_CERTIFICATES:
        raise JwksMalformed(f"a key has 1 to {MAX_CERTIFICATES} certificates")
    try:
        certificates = tuple(b64decode(text, validate=True) for text in texts)
    except (TypeError, ValueError) as error:
        raise JwksMalformed("a key's certificates are a list of base64 texts") from error
    if any(len(certificate) > MAX_CERTIFICATE_BYTES for certificate in certificates):
        raise JwksMalformed(f"a key's certificate has at most {MAX_CERTIFICATE_BYTES} bytes")
    return certificates


def _certified_key(leaf: bytes) -> bytes:
    try:
        key = read_certificate(leaf).public_key()
    except UNREADABLE as error:
        raise JwksMalformed("a key's certificate cannot be read") from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
