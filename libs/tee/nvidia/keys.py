"""Responsible for whether a key may sign an issuer's tokens: policy pins it, or an authority that certified it.

NVIDIA's service takes a new signing key every day and certifies each for two days, so policy pins the authority above
them and evidence brings the certificates along. Its chains have a P-384 leaf that an RSA authority signed, which an
ECDSA root signed; the root is not published, so any authority of a chain may be the one that policy pins.

Nothing here asks whether an authority revoked a certificate: the leaves are short-lived, and to revoke an authority is
to take it out of the policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.nvidia.chain import (
    BROKEN,
    UNREADABLE,
    are_current,
    digests,
    note_dates,
    read_certificate,
    require_signing_leaf,
    verify_links,
)
from libs.tee.steps import Note, ignore

KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_KEYS = 4
MAX_CERTIFICATES = 4
# NVIDIA's have less than 1 KiB each.
MAX_CERTIFICATE_BYTES = 4096

_SERVICE_NAME = "Attestation Service"
_KEY_NAME = f"one that holds {_SERVICE_NAME}"
_LONGEST_LIFE = timedelta(days=7)
_TLS_PURPOSES = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})
_RSA_BITS = range(2048, 4097)
_RSA_EXPONENT = 65537
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

# Key id to certificates, DER, leaf first; with or without the authority that policy pins.
KeyChains = Mapping[str, tuple[bytes, ...]]


class TokenIssuerNotTrusted(MeshError):
    """Policy does not name the service that the token names as its issuer."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_ISSUER_NOT_TRUSTED"


class TokenKeyNotTrusted(MeshError):
    """The issuer is known, the key is not: policy pins neither it nor an authority that certified it."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_KEY_NOT_TRUSTED"


class TokenKeyChainInvalid(MeshError):
    """The certificates of a key name an authority that policy pins, and do not prove that it certified the key."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_KEY_CHAIN_INVALID"


class TokenKeyChainNotCurrent(MeshError):
    """A certificate of the key has expired or is not valid yet."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT"


class PinnedKeyUnusable(MeshError):
    """Policy pins something that is neither a P-384 public key nor an authority's certificate."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_PINNED_KEY_UNUSABLE"


@dataclass(frozen=True, slots=True)
class Issuer:
    """By what policy knows the keys of one token service."""

    # Key id to public key (SubjectPublicKeyInfo, DER, P-384).
    keys: Mapping[str, bytes]
    # Certificate authorities (DER) that may certify further keys: roots, or authorities below one.
    roots: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that may sign for an issuer."""

    key: ec.EllipticCurvePublicKey
    # Last unix second in which its certificates hold; None for a pinned key, which has no end.
    valid_until: int | None


class Keyring:
    """The keys that may sign at one moment. Each chain is verified once, however many tokens its key signed."""

    def __init__(self, issuers: Mapping[str, Issuer], chains: KeyChains, now: int) -> None:
        self._issuers = issuers
        self._chains = chains
        self._now = now
        self._found: dict[tuple[str, str], SigningKey] = {}

    def signing_key(self, issuer: object, key_id: object, note: Note = ignore) -> SigningKey:
        """Return the key that a token names, issuer and key id as it states them. Raises this module's errors."""
        note("issuer", issuer, self._issuers.keys())
        if not isinstance(issuer, str) or issuer not in self._issuers:
            raise TokenIssuerNotTrusted("policy does not name the token's issuer")
        pinned = self._issuers[issuer].keys
        note("key id", key_id, lambda: (*sorted(pinned), "one that a pinned authority certified"))
        if not isinstance(key_id, str):
            raise TokenKeyNotTrusted("the token does not name its key")
        if (issuer, key_id) not in self._found:
            self._found[issuer, key_id] = self._find(self._issuers[issuer], key_id, note)
        return self._found[issuer, key_id]

    def _find(self, issuer: Issuer, key_id: str, note: Note) -> SigningKey:
        if key_id in issuer.keys:
            return SigningKey(_pinned_key(issuer.keys[key_id]), None)
        if key_id not in self._chains:
            raise TokenKeyNotTrusted(
                "policy does not pin the token's key, and the evidence brings no certificate of it"
            )
        return verify_key_chain(self._chains[key_id], issuer.roots, self._now, note)


def read_chains(value: Any) -> KeyChains:
    """Read the `keys` member of GPU evidence, bytes as hex. Raises `ValueError`."""
    if not isinstance(value, dict):
        raise ValueError("keys must be an object")
    return bounded({key_id: tuple(_certificates(chain)) for key_id, chain in value.items()})


def bounded(chains: KeyChains) -> KeyChains:
    """Return the chains when evidence may hold them. Raises `ValueError`."""
    if len(chains) > MAX_KEYS:
        raise ValueError(f"keys has at most {MAX_KEYS} keys")
    for key_id, chain in chains.items():
        if KEY_ID.fullmatch(key_id) is None:
            raise ValueError("keys has a key id of another form")
        if not 1 <= len(chain) <= MAX_CERTIFICATES:
            raise ValueError(f"a key has 1 to {MAX_CERTIFICATES} certificates")
        if not all(0 < len(certificate) <= MAX_CERTIFICATE_BYTES for certificate in chain):
            raise ValueError(f"a certificate has at most {MAX_CERTIFICATE_BYTES} bytes")
    return chains


def verify_key_chain(chain: Sequence[bytes], roots: Sequence[bytes], now: int, note: Note = ignore) -> SigningKey:
    """Prove that one of `roots` (DER) certified the first certificate's P-384 key, and that all hold at `now`.

    Raises `TokenKeyNotTrusted`, `TokenKeyChainInvalid`, `TokenKeyChainNotCurrent`, `PinnedKeyUnusable`.
    """
    try:
        certificates = [read_certificate(der) for der in chain]
    except UNREADABLE as error:
        raise TokenKeyChainInvalid("a certificate of the token's key cannot be read") from error
    note("certificates above the token's key, SHA-256", lambda: digests(chain[1:]), lambda: digests(roots))
    note("issuer of the last of them", lambda: _issuer(certificates[-1]), lambda: tuple(map(_name, roots)))
    path = _path(certificates, roots)
    leaf = path[0]
    note_dates(path, now, note)
    note("name of the token's key", lambda: _name(chain[0]), _KEY_NAME)
    try:
        verify_links(path, _verify_form)
        require_signing_leaf(leaf, usage_stated=False)
        _require_attestation_leaf(leaf)
        key = leaf.public_key()
    except BROKEN as error:
        raise TokenKeyChainInvalid("the certificates of the token's key do not hold together") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise TokenKeyChainInvalid("the certified key is not on the curve P-384")
    if not are_current(path, now):
        raise TokenKeyChainNotCurrent("a certificate of the token's key is not valid now: ask for another token")
    return SigningKey(key, min(int(each.not_valid_after_utc.timestamp()) for each in path))


def _require_attestation_leaf(leaf: x509.Certificate) -> None:
    """Refuse with `ValueError` what else an authority may have certified: it signs for other purposes too.

    NVIDIA's signing keys bear the service's name, live for two days, and are certified like TLS keys.
    """
    names = [str(name.value) for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1 or _SERVICE_NAME not in names[0]:
        raise ValueError("the first certificate does not bear the attestation service's name")
    if leaf.not_valid_after_utc - leaf.not_valid_before_utc > _LONGEST_LIFE:
        raise ValueError("the first certificate lives longer than a signing key does")
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.ExtendedKeyUsage) and not set(extension.value) <= _TLS_PURPOSES:
            raise ValueError("the first certificate's key is for another purpose")


def _issuer(certificate: x509.Certificate) -> str:
    return certificate.issuer.rfc4514_string()


def _name(der: bytes) -> str:
    return read_certificate(der).subject.rfc4514_string()


def _path(certificates: Sequence[x509.Certificate], roots: Sequence[bytes]) -> list[x509.Certificate]:
    """Return leaf to pinned authority: cut at the first authority that is pinned, or ended by one that is its issuer.

    A pinned authority is trusted as it is: who issued it is not looked at.
    """
    for index, certificate in enumerate(certificates[1:], 1):
        if certificate.public_bytes(Encoding.DER) in roots:
            return list(certificates[: index + 1])
    try:
        pinned = [read_certificate(root) for root in roots]
    except UNREADABLE as error:
        raise PinnedKeyUnusable("policy pins something that is not a certificate") from error
    last = certificates[-1]
    above = [root for root in pinned if root.subject == last.issuer]
    if not above:
        raise TokenKeyNotTrusted("policy pins neither the token's key nor an authority above it: renew what it pins")
    # An authority that renewed its key keeps its name; any of them may have issued the certificate.
    issuer = above[0] if len(above) == 1 else next((root for root in above if _issued(root, last)), above[0])
    return [*certificates, issuer]


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        verify_links([subject, issuer], _verify_form)
    except BROKEN:
        return False
    return True


def _verify_form(certificate: x509.Certificate) -> None:
    """Accept the algorithms of NVIDIA's chains: P-384 or RSA of a common size, over a hash of the SHA-2 family."""
    key = certificate.public_key()
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            pass
        case rsa.RSAPublicKey() if key.key_size in _RSA_BITS and key.public_numbers().e == _RSA_EXPONENT:
            pass
        case _:
            raise ValueError("a key is neither on the curve P-384 nor an RSA key of a common size")
    if not isinstance(certificate.signature_hash_algorithm, _HASHES):
        raise ValueError("a certificate is signed over a hash that is not accepted")
    if not isinstance(certificate.signature_algorithm_parameters, (ec.ECDSA, padding.PKCS1v15)):
        raise ValueError("a certificate is signed in a way that is not accepted")


def _pinned_key(der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PinnedKeyUnusable("policy pins something that is not a public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise PinnedKeyUnusable("policy pins a key that is not on the curve P-384")
    return key


def _certificates(value: Any) -> list[bytes]:
    # Counted before it is read: what is too long is not worth decoding.
    if not isinstance(value, list) or len(value) > MAX_CERTIFICATES:
        raise ValueError(f"a key has a list of 1 to {MAX_CERTIFICATES} certificates")
    return [shape.binary(each, "certificate") for each in value]
