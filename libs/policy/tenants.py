"""It is responsible for signed tenant records: who may use the routers, in the tenant administrator's own signature.

A record holds digests of API keys, never keys. The registry and its store can lose a record or withhold it; they cannot
make one, and a router that saw a version does not go back behind it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.members import Members
from libs.policy.tenant_record import TenantRecord, TenantRecordMalformed, read_record
from libs.policy.vocabulary import SIGNATURE_BYTES

MAX_RECORD_BYTES = 64 * 1024
_CONTEXT = b"teemesh/tenant/v1\0"


class TenantSignatureInvalid(MeshError):
    """The record is not signed by the tenant administrator that the policy names."""

    code = Code.PERMISSION_DENIED
    reason = "TENANT_SIGNATURE_INVALID"


class TenantVersionNotNext(MeshError):
    """The record does not follow the tenant's stored one."""

    reason = "TENANT_VERSION_NOT_NEXT"


def api_key_digest(api_key: str) -> str:
    """Return how a record names an API key: SHA-256 of its UTF-8 text, hexadecimal."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def sign_tenant(record: TenantRecord, tenant_admin_key: Ed25519PrivateKey) -> bytes:
    """Return the signed record, canonical JSON. Raises `TenantRecordMalformed` for what no reader would accept."""
    read_record(record.value)
    signature = tenant_admin_key.sign(_signing_input(record.value))
    return jcs.dumps({"record": record.value, "signature": signature.hex()})


def verify_tenant(signed: bytes, tenant_admin_key: bytes) -> TenantRecord:
    """Return the record when the key that policy names as `tenant_admin_key` signed it. Raises
    `TenantRecordMalformed`, `TenantSignatureInvalid`.
    """
    if len(signed) > MAX_RECORD_BYTES:
        raise TenantRecordMalformed(f"the record is larger than {MAX_RECORD_BYTES} bytes")
    try:
        value = jcs.loads_object(signed)
    except jcs.JsonMalformed as error:
        raise TenantRecordMalformed(f"the record is {error}") from error
    members = Members(value, "", TenantRecordMalformed)
    given = members.value("record")
    record = read_record(given)
    signature = members.octets("signature", SIGNATURE_BYTES)
    members.end()
    try:
        Ed25519PublicKey.from_public_bytes(tenant_admin_key).verify(signature, _signing_input(given))
    except (InvalidSignature, ValueError) as error:
        raise TenantSignatureInvalid("the record is not signed by the tenant administrator of the policy") from error
    return record


def verify_tenant_successor(stored: TenantRecord | None, record: TenantRecord) -> None:
    """Raise `TenantVersionNotNext` unless the verified record may replace the stored one (none: it must be the
    tenant's first).
    """
    if stored is not None and stored.tenant_id != record.tenant_id:
        raise TenantVersionNotNext("the record is about another tenant")
    following = 1 if stored is None else stored.version + 1
    if record.version != following:
        raise TenantVersionNotNext(f"the tenant's next version is {following}, not {record.version}")


def _signing_input(record: Any) -> bytes:
    return _CONTEXT + hashlib.sha256(jcs.dumps(record)).digest()
