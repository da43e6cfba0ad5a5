"""It is responsible for a copy of the log from its beginning to a checkpoint, whole enough to be verified by itself.

Every leaf is in it, so what the checkpoint signs can be recomputed, and nothing can be left out, added or moved; and
the body of every public entry, which its leaf commits to. What lies in tenants' vaults stays a leaf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs import jcs
from libs.errors import Code, MeshError
from libs.events.records import SALT_SIZE, commit_to, parse_entry
from libs.events.whole_frames import entries_of
from libs.rpc.errors import remote_errors
from libs.transparency import leaf as leaves
from libs.transparency import merkle
from libs.transparency.checkpoint import Checkpoint, parse, verify
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.note import VerifierKey
from services.cli.ledger.command import responses
from services.cli.mesh.service_access import ServiceAccess
from services.cli.terminal.inputs import read_input

_VERSION = 1
_BATCH = 256


class LogCopyMalformed(MeshError):
    """The file is no copy of a log that this version reads."""

    code = Code.INVALID_ARGUMENT
    reason = "LOG_COPY_MALFORMED"


class LogRootMismatch(MeshError):
    """The leaves are not those that the checkpoint signs: one was left out, added, moved or changed."""

    code = Code.DATA_LOSS
    reason = "LOG_ROOT_MISMATCH"


class EntryDamaged(MeshError):
    """An entry's body is not the one that its leaf commits to."""

    code = Code.DATA_LOSS
    reason = "ENTRY_DAMAGED"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a verified copy."""

    index: int
    leaf: Leaf
    body: Mapping[str, Any] | None
    """None where the copy does not have it."""

    @property
    def kind(self) -> Kind:
        return self.leaf.kind


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy, verified or not."""

    checkpoint: bytes
    """The signed note."""
    rows: tuple[tuple[bytes, bytes | None], ...]
    """Leaf data, and salt with canonical entry, in order of the log."""

    def encode(self) -> bytes:
        entries = [[leaf.hex(), None if body is None else body.hex()] for leaf, body in self.rows]
        return jcs.dumps({"v": _VERSION, "checkpoint": self.checkpoint.decode(), "entries": entries})

    @classmethod
    def decode(cls, data: bytes) -> Copied:
        """Raises `LogCopyMalformed`."""
        try:
            value = jcs.loads_object(data)
            if value["v"] != _VERSION or isinstance(value["v"], bool):
                raise ValueError("another version")
            rows = [
                (bytes.fromhex(leaf), None if body is None else bytes.fromhex(body)) for leaf, body in value["entries"]
            ]
            return cls(value["checkpoint"].encode(), tuple(rows))
        except (jcs.JsonMalformed, KeyError, TypeError, ValueError, AttributeError) as error:
            raise LogCopyMalformed(f"no copy of a log: {error}") from error


def read_copy(path: Path) -> Copied:
    """Raises `InputUnreadable`, `LogCopyMalformed`."""
    return Copied.decode(read_input(path))


def verify_copy(copied: Copied, vkey: VerifierKey) -> tuple[Checkpoint, tuple[Entry, ...]]:
    """Return the entries, which are all that this log had at that checkpoint.

    Raises `LogRootMismatch`, `EntryDamaged`, `LeafMalformed` and what the checkpoint is refused with.
    """
    checkpoint = verify(copied.checkpoint, vkey)
    if (
        checkpoint.size != len(copied.rows)
        or merkle.root_of(merkle.leaf_hash(leaf) for leaf, _ in copied.rows) != checkpoint.root
    ):
        raise LogRootMismatch(f"these {len(copied.rows)} leaves are not the {checkpoint.size} of the checkpoint")
    return checkpoint, tuple(_entry(index, leaf, body) for index, (leaf, body) in enumerate(copied.rows))


async def copy_log(access: ServiceAccess, timeout_seconds: float) -> Copied:
    """Read the log from its beginning to its newest checkpoint. Raises what the ledger refuses with."""
    async with access.channel() as channel, asyncio.timeout(timeout_seconds):
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        with remote_errors():
            newest = await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=timeout_seconds)
        size = _size(newest.checkpoint)
        rows: list[tuple[bytes, bytes | None]] = []
        request = ledger_pb2.TailRequest(from_index=0, follow=False, max_batch=_BATCH, whole_frames=True)
        async with aclosing(responses(stub, request)) as answers:
            async for answer in answers:
                rows += [(entry.leaf_data, _public(entry)) for entry in entries_of(answer, len(rows))]
                if len(rows) >= size:
                    break
    return Copied(newest.checkpoint, tuple(rows[:size]))


def _size(signed: bytes) -> int:
    """How much to read; the signature is verified with the rest."""
    return parse(signed).size


def _public(entry: ledger_pb2.LoggedEntry) -> bytes | None:
    return None if leaves.parse(entry.leaf_data).kind.is_tenants or not entry.body else entry.body


def _entry(index: int, leaf_data: bytes, stored: bytes | None) -> Entry:
    leaf = leaves.parse(leaf_data)
    if stored is None or leaf.kind.is_tenants:
        return Entry(index, leaf, None)
    salt, canonical = stored[:SALT_SIZE], stored[SALT_SIZE:]
    if commit_to(salt, canonical) != leaf.commitment:
        raise EntryDamaged(f"entry {index}, {leaf.kind.name.lower()}, is not what its leaf commits to")
    return Entry(index, leaf, parse_entry(canonical).body)
