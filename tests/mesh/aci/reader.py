"""A verifier's reading of ACI documents, made from the specification alone.

It shares no code with what it reads: where both are wrong in the same way, it is not because one copied the other. What
does not hold is an `AssertionError`, as in the tests that ask.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_LARGEST_INTEGER = 2**53 - 1
_HEX = frozenset("0123456789abcdef")
# What GET /v1/aci/receipts/{id} serves: what appendix A says of the whole also holds for its parts.
RECEIPT_MEMBERS = {
    "api_version",
    "receipt_id",
    "chat_id",
    "model",
    "workload_keyset_digest",
    "endpoint",
    "method",
    "served_at",
    "event_log",
    "key_id",
    "signature",
}


def parse(data: bytes) -> Any:
    """Read a document that is hashed or signed (appendix A): integers only, ASCII names, no name twice."""
    return json.loads(data.decode(), object_pairs_hook=_members, parse_float=_refused, parse_constant=_refused)


def canonical(value: Any) -> bytes:
    """RFC 8785 of what `parse` returns: compact, names sorted, texts as UTF-8."""
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_hex(value: object, size: int) -> bool:
    """Whether it is bare lower-case hex of this many bytes."""
    return isinstance(value, str) and len(value) == 2 * size and set(value) <= _HEX


def is_digest(value: object) -> bool:
    return isinstance(value, str) and value.startswith("sha256:") and is_hex(value.removeprefix("sha256:"), 32)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def statement(keyset_digest: str, nonce: str | None) -> bytes:
    """Section 3.2, from the template's own bytes."""
    quoted = b"null" if nonce is None else b'"' + nonce.encode() + b'"'
    head = b'{"keyset_digest":"' + keyset_digest.encode() + b'","nonce":'
    return head + quoted + b',"purpose":"aci.report_data.v1"}'


def report_data(keyset_digest: str, nonce: str | None) -> str:
    return hashlib.sha256(statement(keyset_digest, nonce)).hexdigest()


def pinned_keys(attestation: Mapping[str, Any], host: str) -> set[str]:
    """Sections 3.1, 4.2 and 9.1(6): what a client of this host pins, of what its report says under `attestation`."""
    keys = attestation["workload_keyset"]["tls_public_keys"]
    assert keys
    if all("domain" not in key for key in keys):
        return {key["spki_sha256"] for key in keys}
    named = attestation["evidence"]["downstream_tls_binding"]
    assert set(named) == {"domain", "spki_sha256"}
    assert named["domain"] == host
    assert named["spki_sha256"] in {key["spki_sha256"] for key in keys if key.get("domain", host) == host}
    return {named["spki_sha256"]}


def receipt_key(keyset: Mapping[str, Any], key_id: str) -> Ed25519PublicKey:
    """Section 7.2: the attested entry that the receipt names decides the algorithm."""
    (entry,) = [entry for entry in keyset["receipt_signing_keys"] if entry["key_id"] == key_id]
    assert entry["algo"] == "ed25519"
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry["public_key"]))


def spki_sha256(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def signature_holds(receipt: Mapping[str, Any], keyset: Mapping[str, Any]) -> bool:
    """Section 9.3(1)."""
    unsigned = {name: value for name, value in receipt.items() if name != "signature"}
    try:
        receipt_key(keyset, receipt["key_id"]).verify(bytes.fromhex(receipt["signature"]), canonical(unsigned))
    except InvalidSignature:
        return False
    return True


def events(receipt: Mapping[str, Any], kind: str) -> Sequence[Mapping[str, Any]]:
    return [event for event in receipt["event_log"] if event["type"] == kind]


def body_hash(receipt: Mapping[str, Any], kind: str) -> str:
    """What the one event of this type says."""
    (event,) = events(receipt, kind)
    assert is_digest(event["body_hash"])
    return str(event["body_hash"])


def outcome(receipt: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the upstream was judged: the last such event, which is about whoever served."""
    return events(receipt, "upstream.verified")[-1]


def session_id(document: Any) -> str:
    """Section 8."""
    return hashlib.sha256(canonical(document)).hexdigest()


def evidence(document: Mapping[str, Any]) -> bytes:
    """Section 8.2: the bytes that the data URI holds, which hash to what is beside it."""
    head, comma, payload = document["evidence"]["data"].partition(",")
    assert head.startswith("data:")
    assert head.endswith(";base64")
    assert comma
    data = base64.b64decode(payload, validate=True)
    assert digest(data) == document["evidence"]["digest"]
    return data


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    assert len(members) == len(pairs), "a name comes twice"
    return members


def _refused(text: str) -> Any:
    raise AssertionError(f"only integers may be hashed, not {text}")


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for name, member in value.items():
            # Integer-like names and this one are dropped or moved by some readers.
            assert name.isascii()
            assert name != "__proto__"
            assert not name.isdigit()
            _check(member)
    elif isinstance(value, list):
        for item in value:
            _check(item)
    elif not isinstance(value, str | bool | None):
        assert isinstance(value, int)
        assert abs(value) <= _LARGEST_INTEGER
