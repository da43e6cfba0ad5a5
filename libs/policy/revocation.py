"""It is responsible for revocations: what any one operator withdraws at once, in a document of their own signature.

Revocations only accumulate. Services may learn of the same ones in different orders, so a set has no order: it is its
members' ids, and its digest is over those ids, sorted. Only a later policy, which m of n sign, lifts one, by its id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.hardware import CPU_FAMILY, UEID
from libs.policy.members import Members
from libs.policy.vocabulary import EVIDENCE_ROLES, INSTANCE, KEY_BYTES, PEOPLE_ROLES, SIGNATURE_BYTES, TRUST_DOMAIN

MAX_REVOCATION_BYTES = 4096
_CONTEXT = b"teemesh/revocation/v1\0"

_DIGEST = re.compile("[0-9a-f]{64}")
_REASON = re.compile("[ -~]{1,256}")
"""Printable ASCII: it is shown on terminals."""


class RevocationMalformed(MeshError):
    """The bytes are not a revocation that this version reads."""

    code = Code.INVALID_ARGUMENT
    reason = "REVOCATION_MALFORMED"


class RevocationSignatureInvalid(MeshError):
    """The revocation is not signed by an operator who counts."""

    code = Code.PERMISSION_DENIED
    reason = "REVOCATION_SIGNATURE_INVALID"


class RevocationOfAnotherMesh(MeshError):
    """The revocation is for another trust domain."""

    code = Code.PERMISSION_DENIED
    reason = "REVOCATION_OF_ANOTHER_MESH"


class RevocationKind(StrEnum):
    """What can be revoked."""

    MEASUREMENT = "measurement"
    """An app-compose, by its hash."""
    DEVICE = "device"
    """A machine or a GPU, as policy's device lists name it."""
    CPU_FAMILY = "cpu_family"
    KEY = "key"
    """A mesh key, by SHA-256 of its SubjectPublicKeyInfo."""
    NODE = "node"
    """An instance of a service, or a person or tool, by SPIFFE ID."""
    TENANT = "tenant"
    """By its random id."""


_BEARER = "|".join(sorted(EVIDENCE_ROLES | PEOPLE_ROLES))
_SPIFFE_ID = re.compile(rf"spiffe://[a-z0-9.-]{{1,200}}/({_BEARER})/{INSTANCE.pattern}")
_VALUES: Mapping[RevocationKind, re.Pattern[str]] = MappingProxyType(
    {
        RevocationKind.MEASUREMENT: _DIGEST,
        RevocationKind.DEVICE: re.compile(f"{_DIGEST.pattern}|{UEID.pattern}"),
        RevocationKind.CPU_FAMILY: CPU_FAMILY,
        RevocationKind.KEY: _DIGEST,
        RevocationKind.NODE: _SPIFFE_ID,
        RevocationKind.TENANT: re.compile("[0-9a-f]{32}"),
    }
)
_KIND = re.compile("|".join(RevocationKind))


@dataclass(frozen=True, slots=True)
class Revocation:
    """One thing withdrawn from one mesh."""

    trust_domain: str
    kind: RevocationKind
    value: str
    reason: str
    """For people."""
    time_ms: int
    """Unix milliseconds, as the operator says. It tells two revocations of one thing apart, and decides nothing."""

    @property
    def members(self) -> dict[str, Any]:
        """The revocation as JSON."""
        return {
            "v": 1,
            "trust_domain": self.trust_domain,
            "kind": str(self.kind),
            "value": self.value,
            "reason": self.reason,
            "time_ms": self.time_ms,
        }

    @property
    def id(self) -> bytes:
        """SHA-256 of its canonical JSON."""
        return hashlib.sha256(jcs.dumps(self.members)).digest()

    @property
    def signing_input(self) -> bytes:
        """The bytes that an operator signs."""
        return _CONTEXT + self.id


@dataclass(frozen=True, slots=True)
class SignedRevocation:
    """A revocation with its operator's signature, verified or not."""

    revocation: Revocation
    key: bytes
    signature: bytes

    @property
    def document(self) -> bytes:
        """The signed form, canonical JSON: what is stored, logged and sent."""
        signature = {"key": self.key.hex(), "signature": self.signature.hex()}
        return jcs.dumps({"revocation": self.revocation.members, "signature": signature})


@dataclass(frozen=True, slots=True)
class RevocationSet:
    """Verified revocations by id. It MUST only ever be replaced by a union with itself."""

    signed: Mapping[bytes, SignedRevocation] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def number(self) -> int:
        return len(self.signed)

    @property
    def digest(self) -> bytes:
        """SHA-256 over the ids, sorted, so that whoever holds the same set computes the same."""
        return hashlib.sha256(b"".join(sorted(self.signed))).digest()

    def union(self, others: Iterable[SignedRevocation]) -> RevocationSet:
        """Return the set with these too. Of two signatures on the same revocation the first one seen stays."""
        new = {signed.revocation.id: signed for signed in others}
        return RevocationSet(MappingProxyType({**new, **self.signed}))

    def active(self, lifted: Collection[bytes]) -> Iterator[Revocation]:
        """Yield what is revoked now: everything but what operators lifted."""
        for identifier, signed in self.signed.items():
            if identifier not in lifted:
                yield signed.revocation


NO_REVOCATIONS_DIGEST = RevocationSet().digest
"""What a statement says while nothing is revoked."""


def sign_revocation(revocation: Revocation, operator_key: Ed25519PrivateKey) -> SignedRevocation:
    """Sign as one operator. Raises `RevocationMalformed` for what no service would read."""
    _read(Members(revocation.members, "revocation", RevocationMalformed))
    return SignedRevocation(
        revocation, operator_key.public_key().public_bytes_raw(), operator_key.sign(revocation.signing_input)
    )


def parse_revocation(signed: bytes) -> SignedRevocation:
    """Read a signed revocation without verifying it. Raises `RevocationMalformed`."""
    if len(signed) > MAX_REVOCATION_BYTES:
        raise RevocationMalformed(f"the document is larger than {MAX_REVOCATION_BYTES} bytes")
    try:
        value = jcs.loads_object(signed)
    except jcs.JsonMalformed as error:
        raise RevocationMalformed(f"the document is {error}") from error
    members = Members(value, "", RevocationMalformed)
    revocation = _read(members.object("revocation"))
    signature = members.object("signature")
    found = SignedRevocation(
        revocation, signature.octets("key", KEY_BYTES), signature.octets("signature", SIGNATURE_BYTES)
    )
    signature.end()
    members.end()
    return found


def verify_revocation(signed: SignedRevocation, operator_keys: Collection[bytes], trust_domain: str) -> None:
    """Raise unless one of these operators withdrew this from this mesh: `RevocationOfAnotherMesh`,
    `RevocationSignatureInvalid`.
    """
    if signed.revocation.trust_domain != trust_domain:
        raise RevocationOfAnotherMesh(
            f"the revocation is for {signed.revocation.trust_domain}, this mesh is {trust_domain}"
        )
    if signed.key not in operator_keys:
        raise RevocationSignatureInvalid(f"the revocation is signed by {signed.key.hex()}, which is no operator's key")
    try:
        Ed25519PublicKey.from_public_bytes(signed.key).verify(signed.signature, signed.revocation.signing_input)
    except (InvalidSignature, ValueError) as error:
        raise RevocationSignatureInvalid("the operator's signature is not over this revocation") from error


def _read(members: Members) -> Revocation:
    members.integer("v", 1, 1)
    trust_domain = members.text("trust_domain", TRUST_DOMAIN)
    kind = RevocationKind(members.text("kind", _KIND))
    value = members.text("value", _VALUES[kind])
    if kind is RevocationKind.NODE and not value.startswith(f"spiffe://{trust_domain}/"):
        raise members.refuse("value", f"must be a SPIFFE ID of {trust_domain}")
    revocation = Revocation(trust_domain, kind, value, members.text("reason", _REASON), members.integer("time_ms", 0))
    members.end()
    return revocation
