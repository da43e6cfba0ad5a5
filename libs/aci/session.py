"""Responsible for attested sessions (§8): the content-addressed proof of one verified upstream channel.

A session's id is the digest of its document, so it is never signed and never changed. Reading one recomputes its id and
its evidence's digest; judging its claims, and the evidence itself, is the reader's policy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs import jcs
from libs.aci import claims as typed_claims
from libs.aci.claims import Claims, ClaimsLike
from libs.aci.encoding import API_VERSION, Members, digest
from libs.errors import Code, MeshError

# Names that every implementation sorts alike: some treat integer-like names apart.
_EXTRA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_CONTENT_TYPE = re.compile(r"[a-z0-9.+-]+/[a-z0-9.+-]+")
_DATA_URI = re.compile(r"data:([^,;]+);base64,(.*)", re.DOTALL)


class SessionMalformed(MeshError):
    """The session is not the document that §8.2 defines."""

    code = Code.INVALID_ARGUMENT
    reason = "SESSION_MALFORMED"


class SessionIdMismatch(MeshError):
    """The document is not the one that the id names."""

    reason = "SESSION_ID_MISMATCH"


class SessionEvidenceMismatch(MeshError):
    """The session's evidence does not hash to the digest that it states."""

    reason = "SESSION_EVIDENCE_MISMATCH"


@dataclass(frozen=True, slots=True)
class TlsBinding:
    """The channel was TLS to this origin, pinned to this key."""

    origin: str
    spki_sha256: str


@dataclass(frozen=True, slots=True)
class KeyBinding:
    """The channel was encrypted to this key."""

    provider: str
    algorithm: str
    public_key_sha256: str
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class UnenforceableBinding:
    """A binding of a type that this version does not know; it proves nothing here (Appendix B)."""

    type: str


Binding = TlsBinding | KeyBinding | UnenforceableBinding


@dataclass(frozen=True, slots=True)
class Session:
    """A session whose id and evidence digest have been recomputed. Times are in Unix seconds."""

    session_id: str
    upstream_name: str
    endpoint: str | None
    verifier_id: str
    established_at: int
    expires_at: int
    identity: Mapping[str, Any]
    bindings: tuple[Binding, ...]
    claims: Claims
    extra: Mapping[str, Any]
    evidence: bytes = field(repr=False)


def session_document(
    *,
    upstream_name: str,
    endpoint: str | None,
    verifier_id: str,
    established_at: int,
    expires_at: int,
    bindings: tuple[TlsBinding | KeyBinding, ...],
    claims: ClaimsLike,
    evidence: bytes,
    content_type: str = "application/json",
    identity: Mapping[str, str] | None = None,
    extra: Mapping[str, str | int | bool] | None = None,
) -> bytes:
    """Return the canonical document. Raises `SessionMalformed` or `ClaimMalformed` for what would not verify.

    `evidence` is the exact bytes that were appraised; `extra` holds raw facts under names that stay as published.
    """
    if not all(_EXTRA_NAME.fullmatch(name) for name in extra or {}):
        raise SessionMalformed("names of extra facts are ASCII words that do not look like numbers")
    if _CONTENT_TYPE.fullmatch(content_type) is None:
        raise SessionMalformed("the evidence's content type must be a bare media type")
    document: dict[str, Any] = {
        "api_version": API_VERSION,
        "upstream_name": upstream_name,
        "endpoint": endpoint,
        "verifier_id": verifier_id,
        "established_at": established_at,
        "expires_at": expires_at,
        "channel_binding": [_binding_document(binding) for binding in bindings],
        "claims": typed_claims.document(claims) | ({"extra": dict(extra)} if extra else {}),
        "evidence": {
            "digest": digest(evidence),
            "data": f"data:{content_type};base64,{base64.b64encode(evidence).decode('ascii')}",
        },
    }
    if identity:
        document["identity"] = dict(identity)
    data = jcs.dumps(document)
    verify_session(data, session_id(data))
    return data


def session_id(document: bytes) -> str:
    """Return the content address of a document in any encoding: bare hex. Raises `JsonMalformed`."""
    return hashlib.sha256(jcs.dumps(jcs.loads_object(document))).hexdigest()


def verify_session(document: bytes, expected_id: str) -> Session:
    """Accept the document that this id names, with its evidence (§9.2 steps 1 and 2).

    Raises `SessionIdMismatch`, `SessionEvidenceMismatch`, `SessionMalformed` or `JsonMalformed`. Does not judge the
    claims, the bindings or the evidence, nor whether the session is still current.
    """
    value = jcs.loads_object(document)
    if hashlib.sha256(jcs.dumps(value)).hexdigest() != expected_id:
        raise SessionIdMismatch("the document is not the one that the session id names")
    members = Members(value, "session", SessionMalformed)
    members.api_version()
    claims = members.object("claims")
    session = Session(
        session_id=expected_id,
        upstream_name=members.text("upstream_name"),
        endpoint=members.text_or_null("endpoint"),
        verifier_id=members.text("verifier_id"),
        established_at=members.integer("established_at"),
        expires_at=members.integer("expires_at"),
        identity=members.mapping("identity") if members.has("identity") else {},
        bindings=members.items("channel_binding", _read_binding),
        claims=typed_claims.read(claims),
        extra=claims.mapping("extra") if claims.has("extra") else {},
        evidence=_read_evidence(members.object("evidence")),
    )
    if session.expires_at <= session.established_at:
        raise SessionMalformed("a session ends after it was established")
    return session


def abbreviated(document: bytes) -> dict[str, Any]:
    """Return the list form (§8.1): with its `session_id`, without `evidence.data`. It does not hash to its id."""
    value = jcs.loads_object(document)
    evidence = Members(value, "session", SessionMalformed).object("evidence")
    return value | {"session_id": session_id(document), "evidence": {"digest": evidence.digest("digest")}}


@dataclass(frozen=True, slots=True)
class Citable:
    """A session that may be cited: its bytes as sealed, and as lists have it. Made once, for a list costs as much as
    reading each.
    """

    document: bytes = field(repr=False)
    entry: bytes = field(repr=False)
    """`abbreviated`, in JSON."""

    @classmethod
    def of(cls, document: bytes) -> Citable:
        """Raises what `abbreviated` raises."""
        return cls(document, json.dumps(abbreviated(document)).encode())


def _binding_document(binding: TlsBinding | KeyBinding) -> dict[str, str]:
    if isinstance(binding, TlsBinding):
        return {"type": "tls_spki_sha256", "origin": binding.origin, "spki_sha256": binding.spki_sha256}
    return {
        "type": "e2ee_public_key_sha256",
        "provider": binding.provider,
        "algorithm": binding.algorithm,
        "public_key_sha256": binding.public_key_sha256,
    } | ({} if binding.key_id is None else {"key_id": binding.key_id})


def _read_binding(members: Members) -> Binding:
    match kind := members.text("type"):
        case "tls_spki_sha256":
            return TlsBinding(members.text("origin"), members.hex("spki_sha256", 32))
        case "e2ee_public_key_sha256":
            return KeyBinding(
                provider=members.text("provider"),
                algorithm=members.text("algorithm"),
                public_key_sha256=members.hex("public_key_sha256", 32),
                key_id=members.optional_text("key_id"),
            )
        case _:
            return UnenforceableBinding(kind)


def _read_evidence(members: Members) -> bytes:
    stated = members.digest("digest")
    uri = _DATA_URI.fullmatch(members.text("data"))
    if uri is None:
        raise members.refuse("data", "must be a base64 data URI")
    try:
        data = base64.b64decode(uri[2], validate=True)
    except binascii.Error as error:
        raise members.refuse("data", "must be a base64 data URI") from error
    if digest(data) != stated:
        raise SessionEvidenceMismatch("the session's evidence does not hash to the digest that it states")
    return data
