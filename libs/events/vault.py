"""Responsible for vault keys: how they derive, what one seals with, and the tag that a tenant recognises.

A vault key needs two halves, one from the KMS and one that the ledger can forget. Forgetting it erases every body that
was sealed under it, wherever copies are.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.transparency.chain import domain

KEY_SIZE = 32
VAULT_ID_SIZE = 16
TAG_SIZE = 16
PUBLIC_VAULT_ID = bytes(VAULT_ID_SIZE)
PUBLIC_EPOCH = 0
PUBLIC_TAG_KEY = bytes(KEY_SIZE)

_RECORD, _TAG = domain("record"), domain("tag")
_FIRST_YEAR = 1970
_TENANT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class VaultKey:
    """K(v,e): what seals one tenant's entries during one month."""

    vault_id: bytes
    epoch: int
    """Months since January 1970, which is 1."""
    key: bytes = field(repr=False)
    tenant: str
    """The tenant's random id, which the sealed entry names."""

    def __post_init__(self) -> None:
        if len(self.vault_id) != VAULT_ID_SIZE or self.vault_id == PUBLIC_VAULT_ID:
            raise ValueError(f"a tenant's vault id is {VAULT_ID_SIZE} bytes and not zero")
        if len(self.key) != KEY_SIZE:
            raise ValueError(f"a vault key has {KEY_SIZE} bytes")
        if not 1 <= self.epoch < 2**32:
            raise ValueError("a vault epoch is a u32 that starts at 1")
        if not _TENANT.fullmatch(self.tenant):
            raise ValueError("a tenant's id is 32 lower-case hex characters")

    def record_key(self, issuer: bytes, issuer_seq: int) -> bytes:
        """Return the key of exactly one record. No two records share one, so the GCM nonce may be constant."""
        return hmac.digest(self.key, _RECORD + issuer + issuer_seq.to_bytes(8, "big"), "sha256")


def vault_epoch(unix_seconds: float) -> int:
    """Return the month that a time (UTC) lies in, counted from January 1970, which is 1."""
    moment = datetime.fromtimestamp(unix_seconds, UTC)
    return (moment.year - _FIRST_YEAR) * 12 + moment.month


def derive_vault_key(kms_key: bytes, share: bytes, vault_id: bytes, epoch: int) -> bytes:
    """Return K(v,e) from the KMS key of that epoch and the ledger's share of it."""
    _check_sizes(kms_key, share, vault_id)
    return _hkdf(kms_key + share, domain("vault") + vault_id + epoch.to_bytes(4, "big"))


def derive_tag_key(tag_share: bytes, vault_id: bytes) -> bytes:
    """Return T(v), which the tenant may have: with it, and only with it, its leaves can be told from others."""
    _check_sizes(tag_share, tag_share, vault_id)
    return _hkdf(tag_share, domain("tag-key") + vault_id)


def leaf_tag(tag_key: bytes, vault_seq: int) -> bytes:
    """Return the tag of a vault's entry number `vault_seq`, from 1."""
    return Tags(tag_key).of(vault_seq)


class Tags:
    """The tags of one vault's entries, for whoever makes many: what depends on the key alone is done once."""

    __slots__ = ("_begun",)

    def __init__(self, tag_key: bytes) -> None:
        self._begun = hmac.new(tag_key, _TAG, "sha256")

    def of(self, vault_seq: int) -> bytes:
        """Return the tag of the vault's entry number `vault_seq`, from 1."""
        mac = self._begun.copy()
        mac.update(vault_seq.to_bytes(8, "big"))
        return mac.digest()[:TAG_SIZE]


def _check_sizes(first: bytes, second: bytes, vault_id: bytes) -> None:
    if (len(first), len(second), len(vault_id)) != (KEY_SIZE, KEY_SIZE, VAULT_ID_SIZE):
        raise ValueError(f"keys and shares have {KEY_SIZE} bytes, vault ids {VAULT_ID_SIZE}")


def _hkdf(material: bytes, info: bytes) -> bytes:
    # HKDF with an absent salt is HKDF with an empty one (RFC 5869 section 2.2).
    return HKDF(algorithm=hashes.SHA256(), length=KEY_SIZE, salt=None, info=info).derive(material)
