"""It is responsible for tenant records: who may use the routers, in the tenant administrator's own signature.

A record holds digests of API keys, never keys. The registry and its store can lose a record or withhold it; they cannot
make one, and a router that saw a version does not go back behind it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.members import Members
from libs.policy.vocabulary import KEY_BYTES, SIGNATURE_BYTES

TENANT_ID_BYTES = 16
MAX_RECORD_BYTES = 64 * 1024
_CONTEXT = b"teemesh/tenant/v1\0"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")


class TenantRecordMalformed(MeshError):
    """The bytes are not a tenant record."""

    code = Code.INVALID_ARGUMENT
    reason = "TENANT_RECORD_MALFORMED"


class TenantSignatureInvalid(MeshError):
    """The record is not signed by the tenant administrator that the policy names."""

    code = Code.PERMISSION_DENIED
    reason = "TENANT_SIGNATURE_INVALID"


class TenantVersionNotNext(MeshError):
    """The record does not follow the tenant's stored one."""

    reason = "TENANT_VERSION_NOT_NEXT"


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """One tenant at one version."""

    tenant_id: str
    """Random, 32 hexadecimal digits: the only name of a tenant that leaves the registry and the routers."""
    version: int
    """From 1, one more with every change."""
    name: str
    """For people."""
    api_key_sha256: tuple[str, ...]
    """Digests of the tenant's API keys, hexadecimal. Empty: the tenant may do nothing."""

    @property
    def value(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "tenant_id": self.tenant_id,
            "version": self.version,
            "name": self.name,
            "api_key_sha256": list(self.api_key_sha256),
        }


def api_key_digest(api_key: str) -> str:
    """Return how a record names an API key: SHA-256 of its UTF-8 text, hexadecimal."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def sign_tenant(record: TenantRecord, tenant_admin_key: Ed25519PrivateKey) -> bytes:
    """Return the signed record, canonical JSON. Raises `TenantRecordMalformed` for what no reader would accept."""
    _read(Members(record.value, "record", TenantRecordMalformed))
    signature = tenant_admin_key.sign(_signing_input(record))
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
    record = _read(members.object("record"))
    signature = members.octets("signature", SIGNATURE_BYTES)
    members.end()
    try:
        Ed25519PublicKey.from_public_bytes(tenant_admin_key).verify(signature, _signing_input(record))
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


def _signing_input(record: TenantRecord) -> bytes:
    return _CONTEXT + hashlib.sha256(jcs.dumps(record.value)).digest()


def _read(members: Members) -> TenantRecord:
    record = TenantRecord(
        tenant_id=members.hexadecimal("tenant_id", TENANT_ID_BYTES),
        version=members.integer("version", 1),
        name=members.text("name", _NAME),
        api_key_sha256=members.hexadecimals("api_key_sha256", KEY_BYTES, may_be_empty=True),
    )
    members.end()
    return record
