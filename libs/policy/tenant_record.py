"""It is responsible for what a tenant record says: who the tenant is, its API keys and what each is for, its limits.

There are two forms. The first lists digests of keys and nothing else; a record that needs no more is written in it, so
that readers who know no other still read it. The second says `"form": 2` and has everything. What a reader does not
know is a refusal in both, so no limit is ever passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES
from libs.errors import Code, MeshError
from libs.policy.members import Members
from libs.policy.vocabulary import KEY_BYTES

TENANT_ID_BYTES = 16
MAX_KEYS = 256
RECEIPTS = "receipts"
"""The scope of reading receipts, and what proves them."""

SCOPE_OF_PATH = {
    CHAT.path: "chat",
    COMPLETIONS.path: "completions",
    EMBEDDINGS.path: "embeddings",
    MESSAGES.path: "messages",
    COUNT_TOKENS.path: "messages",
    RESPONSES.path: "responses",
}
SCOPES = frozenset({*SCOPE_OF_PATH.values(), RECEIPTS})

KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")
_SCOPE = re.compile("|".join(sorted(SCOPES)))
_MODEL = re.compile(r"[!-~]([ -~]{0,254}[!-~])?")
_FORM = 2
_DERIVED_ID_DIGITS = 16


class TenantRecordMalformed(MeshError):
    """The bytes are not a tenant record."""

    code = Code.INVALID_ARGUMENT
    reason = "TENANT_RECORD_MALFORMED"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key of a tenant's. An absent list limits nothing, an empty one allows nothing."""

    id: str
    """Names the key in usage entries and commands; never the key itself."""
    sha256: str
    """Of the key's UTF-8 text, hexadecimal."""
    scopes: tuple[str, ...] | None = None
    """Some of `SCOPES`."""
    not_after: int | None = None
    """Unix seconds, from which on it is no key."""
    models: tuple[str, ...] | None = None

    def allows(self, scope: str) -> bool:
        return self.scopes is None or scope in self.scopes

    def allows_model(self, model: str) -> bool:
        return self.models is None or model in self.models

    @property
    def value(self) -> dict[str, Any]:
        return _written(
            id=self.id, sha256=self.sha256, scopes=self.scopes, not_after=self.not_after, models=self.models
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one router lets one tenant do, whichever of its keys it uses. None: no limit."""

    requests_per_minute: int | None = None
    burst: int | None = None
    """How many may come at once, if none came before; None: as many as in a minute. Only with `requests_per_minute`."""
    concurrent: int | None = None
    """Requests that are being answered."""
    tokens_per_day: int | None = None
    """Of prompts and answers together, in a day of UTC."""
    tokens_per_month: int | None = None

    @property
    def has_quota(self) -> bool:
        """Whether tokens are counted at all."""
        return self.tokens_per_day is not None or self.tokens_per_month is not None

    @property
    def value(self) -> dict[str, int]:
        return _written(**{each.name: getattr(self, each.name) for each in fields(self)})


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """One tenant at one version."""

    tenant_id: str
    """Random, 32 hexadecimal digits: the only name of a tenant that leaves the registry and the routers."""
    version: int
    """From 1, one more with every change."""
    name: str
    """For people."""
    keys: tuple[ApiKey, ...]
    """Empty: the tenant may do nothing."""
    limits: Limits = field(default=UNLIMITED)
    disabled: bool = False
    """Refuses every key, and keeps all that is said of them."""

    @property
    def api_key_sha256(self) -> tuple[str, ...]:
        return tuple(key.sha256 for key in self.keys)

    def key(self, sha256: str) -> ApiKey | None:
        """Return the key of this digest."""
        return next((key for key in self.keys if key.sha256 == sha256), None)

    @property
    def value(self) -> dict[str, Any]:
        """The record as JSON, in the first form if that says it all."""
        common = {"tenant_id": self.tenant_id, "version": self.version, "name": self.name}
        if self.keys == unrestricted(*self.api_key_sha256) and self.limits == UNLIMITED and not self.disabled:
            return common | {"api_key_sha256": list(self.api_key_sha256)}
        return common | {
            "form": _FORM,
            "keys": [key.value for key in self.keys],
            "limits": self.limits.value,
            "disabled": self.disabled,
        }


def unrestricted(*digests: str) -> tuple[ApiKey, ...]:
    """Return keys for everything, named by their digests, as the first form has them."""
    return tuple(ApiKey(digest[:_DERIVED_ID_DIGITS], digest) for digest in digests)


def read_record(value: Any) -> TenantRecord:
    """Read a record of either form. Raises `TenantRecordMalformed`."""
    members = Members(value, "record", TenantRecordMalformed)
    second = members.has("form")
    if second:
        members.integer("form", _FORM, _FORM)
    tenant_id = members.hexadecimal("tenant_id", TENANT_ID_BYTES)
    version = members.integer("version", 1)
    name = members.text("name", NAME)
    if second:
        keys, limits, disabled = _keys(members), _limits(members.object("limits")), members.flag("disabled")
    else:
        digests = members.hexadecimals("api_key_sha256", KEY_BYTES, may_be_empty=True)
        keys, limits, disabled = unrestricted(*digests), UNLIMITED, False
    members.end()
    return TenantRecord(tenant_id, version, name, keys, limits, disabled)


def _keys(members: Members) -> tuple[ApiKey, ...]:
    keys = [_key(each) for each in members.objects("keys")]
    if len(keys) > MAX_KEYS:
        raise members.refuse("keys", f"must be at most {MAX_KEYS}")
    members.distinct([key.id for key in keys], "keys")
    members.distinct([key.sha256 for key in keys], "keys")
    return tuple(keys)


def _key(members: Members) -> ApiKey:
    key = ApiKey(
        id=members.text("id", KEY_ID),
        sha256=members.hexadecimal("sha256", KEY_BYTES),
        scopes=members.texts("scopes", _SCOPE, may_be_empty=True) if members.has("scopes") else None,
        not_after=members.integer("not_after", 1) if members.has("not_after") else None,
        models=members.texts("models", _MODEL, may_be_empty=True) if members.has("models") else None,
    )
    members.end()
    return key


def _limits(members: Members) -> Limits:
    def number(name: str) -> int | None:
        return members.integer(name, 1) if members.has(name) else None

    limits = Limits(**{each.name: number(each.name) for each in fields(Limits)})
    if limits.burst is not None and limits.requests_per_minute is None:
        raise members.refuse("burst", "limits nothing without requests_per_minute")
    members.end()
    return limits


def _written(**members: Any) -> dict[str, Any]:
    """Return the members that say something."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in members.items() if value is not None
    }
