"""It is responsible for what changes from one version of a tenant's record to the next. Pure; API keys are made here.

Of a key that is made only the digest goes into the record: whoever makes it has the one copy.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from libs.errors import Code, MeshError
from libs.policy.tenant_record import MAX_KEYS, TENANT_ID_BYTES, ApiKey, Limits, TenantRecord, read_record
from libs.policy.tenants import api_key_digest

_PREFIX = "sk-teemesh-"
_KEY_OCTETS = 32


class ApiKeyIdUnknown(MeshError):
    """The tenant has no key of that id."""

    code = Code.NOT_FOUND
    reason = "API_KEY_ID_UNKNOWN"


class ApiKeyIdTaken(MeshError):
    """The tenant has a key of that id."""

    code = Code.ALREADY_EXISTS
    reason = "API_KEY_ID_TAKEN"


class NothingChanges(MeshError):
    """The record says so already."""

    reason = "NOTHING_CHANGES"


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is to be for; see `ApiKey`."""

    id: str
    scopes: tuple[str, ...] | None = None
    not_after: int | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """The next version, and the API key that was made for it, if one was."""

    record: TenantRecord
    api_key: str | None = None


def create(name: str, key: NewKey, limits: Limits) -> Changed:
    """Return the first version of a new tenant. Raises `TenantRecordMalformed`."""
    record = TenantRecord(secrets.token_hex(TENANT_ID_BYTES), 0, name, (), limits)
    return add_key(record, key)


def add_key(record: TenantRecord, key: NewKey) -> Changed:
    """Return the next version, with one more key. Raises `ApiKeyIdTaken`, `TenantRecordMalformed`."""
    if any(each.id == key.id for each in record.keys):
        raise ApiKeyIdTaken(f"the tenant has a key {key.id} already")
    api_key = fresh_api_key()
    listed = ApiKey(key.id, api_key_digest(api_key), key.scopes, key.not_after, key.models)
    if len(record.keys) >= MAX_KEYS:
        raise ApiKeyIdTaken(f"a tenant has at most {MAX_KEYS} keys: withdraw one")
    return Changed(_next(replace(record, keys=(*record.keys, listed))), api_key)


def rotate_key(record: TenantRecord, old: str, new: str, not_after: int | None) -> Changed:
    """Return the next version, with a key beside an old one that is for the same. The old one stays until withdrawn."""
    listed = _listed(record, old)
    return add_key(record, NewKey(new, listed.scopes, not_after, listed.models))


def withdraw_key(record: TenantRecord, key_id: str) -> Changed:
    """Return the next version, without a key. Raises `ApiKeyIdUnknown`."""
    gone = _listed(record, key_id)
    return Changed(_next(replace(record, keys=tuple(key for key in record.keys if key is not gone))))


def set_limits(record: TenantRecord, given: Mapping[str, int | None]) -> Changed:
    """Return the next version, with these limits; None ends one, and what is not given stays. Raises
    `NothingChanges`, `TenantRecordMalformed`.
    """
    limits = replace(record.limits, **given)
    if limits == record.limits:
        raise NothingChanges("the tenant has these limits already")
    return Changed(_next(replace(record, limits=limits)))


def set_disabled(record: TenantRecord, *, disabled: bool) -> Changed:
    """Return the next version, disabled or not. Raises `NothingChanges`."""
    if record.disabled == disabled:
        raise NothingChanges(f"the tenant is {'disabled' if disabled else 'not disabled'} already")
    return Changed(_next(replace(record, disabled=disabled)))


def fresh_api_key() -> str:
    return _PREFIX + secrets.token_urlsafe(_KEY_OCTETS)


LIMITS = tuple(each.name for each in fields(Limits))


def _next(record: TenantRecord) -> TenantRecord:
    following = replace(record, version=record.version + 1)
    return read_record(following.value)


def _listed(record: TenantRecord, key_id: str) -> ApiKey:
    for key in record.keys:
        if key.id == key_id:
            return key
    raise ApiKeyIdUnknown(f"the tenant has no key {key_id}")
