"""Responsible for one issuer's sequence: every entry gets the next number, names the one before, and is sealed once.

A stage of a pipeline is signed here, where its number is known.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.events.records import FIRST_PREVIOUS, SALT_SIZE, Entry, Record, seal
from libs.events.stage_signature import sign_stage
from libs.events.vault import VaultKey
from libs.transparency.chain import BOOT_SIZE, entry_id, issuer_id
from libs.transparency.leaf import Kind


@dataclass(frozen=True, slots=True)
class Sealed:
    """An entry that has its number, and the record that carries it."""

    entry_id: bytes
    issuer_seq: int
    salt: bytes
    canonical: bytes
    record: Record
    tenant: str | None


class Issuer:
    """One start of one process: its log key and a number drawn now. Its sequence begins at 1 and has no gaps."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.boot = secrets.token_bytes(BOOT_SIZE)
        self.spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = issuer_id(self.spki, self.boot)
        self._last_seq = 0
        self._previous = FIRST_PREVIOUS

    @property
    def log_key(self) -> bytes:
        """The 32 bytes that the evidence's claim `log_key` must name."""
        return self.key.public_key().public_bytes_raw()

    def seal(self, kind: Kind, body: Mapping[str, Any], vault: VaultKey | None) -> Sealed:
        """Give an entry the next number. Raises `EntryTooLarge` or `JsonMalformed`, and then takes no number."""
        number = self._last_seq + 1
        tenant = None if vault is None else vault.tenant
        entry = Entry(kind, self.id, number, self._previous, tenant, body)
        canonical = (sign_stage(entry, self.key) if kind is Kind.PIPELINE else entry).canonical()
        salt = secrets.token_bytes(SALT_SIZE)
        record = seal(canonical, kind, self.id, number, salt, vault)
        self._last_seq = number
        self._previous = record.header.commitment
        return Sealed(entry_id(self.id, number), number, salt, canonical, record, tenant)
