"""It is responsible for what is asked of a sealed record before it is judged: does it open, and say what it should.

The ledger asks that of a process of its own (`services.ledger.examiner`); how the two say it lies here too. A request
is `u32 length || u64 number || u32 count of vaults || vaults || messages`, each message `u32 length || bytes`; an
answer is a line of JSON.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import MeshError
from libs.events.batches import Batch, parse_batch
from libs.events.records import open_record, verify_entry
from libs.events.vault import VaultKey

VaultKeys = Mapping[tuple[bytes, int], VaultKey]
"""Vault keys by vault and epoch."""

LENGTH_SIZE = 4
_HEAD = struct.Struct(">QI")
_VAULT = struct.Struct(">16sI32s32s")
_OPENS, _STAYS_SHUT = "1", "0"


def opening(batch: Batch, vaults: VaultKeys) -> frozenset[int]:
    """Return the numbers of the sealed records that open with these keys, and are what header and vault say."""
    return frozenset(number for number, _ in batch.numbered() if _opens(batch, number, vaults))


def _opens(batch: Batch, number: int, vaults: VaultKeys) -> bool:
    record = batch.records[number - batch.first_seq]
    vault = vaults.get((record.header.vault_id, record.header.vault_epoch))
    with suppress(MeshError):
        if vault is not None:
            opened = open_record(record, batch.issuer, number, vault)
            verify_entry(opened, record.header, batch.issuer, number, vault.tenant)
            return True
    return False


@dataclass(frozen=True, slots=True)
class Request:
    """Which messages are to be examined, with which keys."""

    number: int
    """Returned with the answer: nobody may wait for an earlier one any more."""
    vaults: VaultKeys
    messages: Sequence[bytes]

    def encode(self) -> bytes:
        """Return the request with its length before it."""
        parts = [_HEAD.pack(self.number, len(self.vaults))]
        parts.extend(
            _VAULT.pack(vault.vault_id, vault.epoch, vault.key, vault.tenant.encode()) for vault in self.vaults.values()
        )
        for message in self.messages:
            parts.append(len(message).to_bytes(LENGTH_SIZE, "big"))
            parts.append(message)
        data = b"".join(parts)
        return len(data).to_bytes(LENGTH_SIZE, "big") + data


def parse_request(data: bytes) -> Request:
    """Read a request without its length."""
    number, count = _HEAD.unpack_from(data)
    at, vaults = _HEAD.size, {}
    for _ in range(count):
        vault_id, epoch, key, tenant = _VAULT.unpack_from(data, at)
        vaults[vault_id, epoch] = VaultKey(vault_id, epoch, key, tenant.decode())
        at += _VAULT.size
    messages = []
    while at < len(data):
        start = at + LENGTH_SIZE
        at = start + int.from_bytes(data[at:start], "big")
        messages.append(data[start:at])
    return Request(number, vaults, messages)


def answer(request: Request) -> bytes:
    """Examine, and return the answer without its line's end."""
    batches = [parse_batch(message) for message in request.messages]
    return jcs.dumps(
        {
            "number": request.number,
            "messages": [[batch.digest.hex(), _marks(batch, opening(batch, request.vaults))] for batch in batches],
        }
    )


def _marks(batch: Batch, opens: frozenset[int]) -> str:
    return "".join(_OPENS if number in opens else _STAYS_SHUT for number, _ in batch.numbered())


def read_marks(batch: Batch, answered: Any) -> frozenset[int] | None:
    """Return what `opening` found, or None where the answer is about another message."""
    digest, marks = answered
    if digest != batch.digest.hex() or len(marks) != len(batch.records):
        return None
    return frozenset(number for (number, _), mark in zip(batch.numbered(), marks, strict=True) if mark == _OPENS)
