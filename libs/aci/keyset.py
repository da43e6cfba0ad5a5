"""Responsible for the workload keyset (§3.1): the attested document that is a workload's cryptographic identity.

The digest is over the canonical form of the whole document, so parsing refuses members that this version does not
define: a value that dropped one would have another digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.aci.encoding import Members, digest
from libs.errors import Code, MeshError

ED25519 = "ed25519"
KEYSET_HEADER = "X-ACI-Keyset-Digest"
"""On every response, the serving keyset's digest (§5.2). On a request, as our own extension, the one that the client
verified: a service that still honours it serves under it.
"""

# DER of a SubjectPublicKeyInfo up to the raw key (RFC 8410).
_ED25519_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

# Public keys whose private halves are printed in the specification's vectors and its reference's fixtures.
_PUBLISHED_PRIVATE_KEYS = frozenset(
    {
        "8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394",
        "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22",
        "34b4d9043156cb6dcf0beb0a2949b7559c940d2bcb6dbe8c53a9b30278e3a746",
        "38ab664bd86f77d7e66bdd9ae0792913a94fd8b33a1260027e4b46c1f4884c67",
        "042c0b7cf95324a07d05398b240174dc0c2be444d96b159aa6c7f7b1e668680991"
        "ae31a9c671a36543f46cea8fce6984608aa316aa0472a7eed08847440218cb2f",
    }
)


class KeysetMalformed(MeshError):
    """The keyset is not the document that §3.1 defines."""

    code = Code.INVALID_ARGUMENT
    reason = "KEYSET_MALFORMED"


class KeyRolesMixed(MeshError):
    """One key is listed in two roles, which §3.1 forbids."""

    reason = "KEY_ROLES_MIXED"


class KeysetExpired(MeshError):
    """The keyset's `not_after` has passed."""

    reason = "KEYSET_EXPIRED"


class KeysetLifetimeImplausible(MeshError):
    """The keyset outlives what the relying party accepts."""

    reason = "KEYSET_LIFETIME_IMPLAUSIBLE"


class PublishedKey(MeshError):
    """The keyset lists a key whose private half is public."""

    reason = "PUBLISHED_KEY"


class ReceiptKeyUnknown(MeshError):
    """No receipt key of that id, or none with an algorithm that this version implements."""

    reason = "RECEIPT_KEY_UNKNOWN"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One entry for receipts or E2EE. The encoding of `public_key` is hex for `ed25519`, else its extension's own."""

    key_id: str
    algo: str
    public_key: str


@dataclass(frozen=True, slots=True)
class TlsKey:
    """One TLS key by the SHA-256 of its SubjectPublicKeyInfo; `domain` restricts it to one host name."""

    spki_sha256: str
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class Keyset:
    """A workload's current public keys. `not_after` is in Unix seconds."""

    subject: str | None
    not_after: int
    receipt_signing_keys: tuple[PublicKey, ...]
    e2ee_public_keys: tuple[PublicKey, ...]
    tls_public_keys: tuple[TlsKey, ...]

    def document(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "not_after": self.not_after,
            "receipt_signing_keys": [_key_document(key) for key in self.receipt_signing_keys],
            "e2ee_public_keys": [_key_document(key) for key in self.e2ee_public_keys],
            "tls_public_keys": [
                {"spki_sha256": key.spki_sha256} | ({} if key.domain is None else {"domain": key.domain})
                for key in self.tls_public_keys
            ],
        }

    @property
    def digest(self) -> str:
        """The `workload_keyset_digest`: `sha256:` and hex, over the canonical form."""
        return digest(jcs.dumps(self.document()))

    def receipt_key(self, key_id: str) -> bytes:
        """Return the raw Ed25519 public key of that id. Raises `ReceiptKeyUnknown`."""
        for key in self.receipt_signing_keys:
            if key.key_id == key_id and key.algo == ED25519:
                return bytes.fromhex(key.public_key)
        raise ReceiptKeyUnknown("no ed25519 receipt key of that id in the keyset")

    def pins(self, host: str) -> frozenset[str]:
        """Return the SPKI digests (hex) that a client of this host name must pin; empty when there are none."""
        name = host.lower()
        return frozenset(key.spki_sha256 for key in self.tls_public_keys if key.domain in (None, name))

    def key_for(self, host: str) -> TlsKey | None:
        """Return the key that a listener shows to clients of this host name: the host's own, else one for all hosts."""
        by_domain = {key.domain: key for key in self.tls_public_keys}
        return by_domain.get(host.lower()) or by_domain.get(None)


def parse(value: Mapping[str, Any]) -> Keyset:
    """Read a keyset object. Raises `KeysetMalformed` or `KeyRolesMixed`."""
    members = Members(value, "workload_keyset", KeysetMalformed)
    members.only("subject", "not_after", "receipt_signing_keys", "e2ee_public_keys", "tls_public_keys")
    keyset = Keyset(
        subject=members.text_or_null("subject"),
        not_after=members.integer("not_after"),
        receipt_signing_keys=members.items("receipt_signing_keys", _read_key),
        e2ee_public_keys=members.items("e2ee_public_keys", _read_key),
        tls_public_keys=members.items("tls_public_keys", _read_tls_key),
    )
    _check(keyset)
    return keyset


def build(
    *,
    subject: str | None,
    not_after: int,
    receipt_keys: Mapping[str, bytes],
    tls_keys: tuple[TlsKey, ...],
    e2ee_keys: tuple[PublicKey, ...] = (),
) -> Keyset:
    """Make a keyset from raw Ed25519 receipt keys by id. Raises what `parse` raises."""
    receipt_signing_keys = tuple(PublicKey(key_id, ED25519, key.hex()) for key_id, key in receipt_keys.items())
    return parse(Keyset(subject, not_after, receipt_signing_keys, e2ee_keys, tls_keys).document())


def verify_usable(keyset: Keyset, *, now: int, longest_seconds: int) -> None:
    """Accept a keyset that is in force, ends within `longest_seconds` and lists no key that everybody holds.

    Raises `KeysetExpired`, `KeysetLifetimeImplausible` or `PublishedKey`. Does not check what binds it.
    """
    if now >= keyset.not_after:
        raise KeysetExpired("the keyset has expired; fetch a fresh attestation report")
    if keyset.not_after - now > longest_seconds:
        raise KeysetLifetimeImplausible("the keyset lives longer than this relying party accepts")
    if any(key.public_key in _PUBLISHED_PRIVATE_KEYS for key in keyset.receipt_signing_keys + keyset.e2ee_public_keys):
        raise PublishedKey("the keyset lists a test key whose private half is published")


def _key_document(key: PublicKey) -> dict[str, str]:
    return {"key_id": key.key_id, "algo": key.algo, "public_key": key.public_key}


def _read_key(members: Members) -> PublicKey:
    members.only("key_id", "algo", "public_key")
    algo = members.text("algo")
    public_key = members.hex("public_key", 32) if algo == ED25519 else members.text("public_key")
    return PublicKey(members.text("key_id"), algo, public_key)


def _read_tls_key(members: Members) -> TlsKey:
    members.only("spki_sha256", "domain")
    domain = members.optional_text("domain")
    if domain is not None and HOST_NAME.fullmatch(domain) is None:
        raise members.refuse("domain", "must be a lower-case host name")
    return TlsKey(members.hex("spki_sha256", 32), domain)


def _check(keyset: Keyset) -> None:
    ids = [key.key_id for key in keyset.receipt_signing_keys]
    if len(set(ids)) != len(ids):
        raise KeysetMalformed("two receipt keys share one key_id, so a receipt would not name its key")
    receipt_keys = {key.public_key for key in keyset.receipt_signing_keys}
    if receipt_keys & {key.public_key for key in keyset.e2ee_public_keys}:
        raise KeyRolesMixed("a receipt key must not double as an E2EE key")
    receipt_spkis = {
        hashlib.sha256(_ED25519_SPKI_PREFIX + bytes.fromhex(key.public_key)).hexdigest()
        for key in keyset.receipt_signing_keys
        if key.algo == ED25519
    }
    if receipt_spkis & {key.spki_sha256 for key in keyset.tls_public_keys}:
        raise KeyRolesMixed("a receipt key must not double as a TLS key")
