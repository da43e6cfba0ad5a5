"""Responsible for a lineage in a file: the stages that led to a model's weights, with all that proves them.

Nothing in the file is proven by being there: `lineage` judges it under a policy and a mesh CA that the reader has from
elsewhere.
"""

from __future__ import annotations

import hashlib
from typing import Any

from libs import jcs
from libs.client.commitment import LedgerName
from libs.client.lineage import MAX_STAGES, Lineage
from libs.client.logged import LoggedEntry
from libs.errors import Code, MeshError
from libs.events.records import SALT_SIZE
from libs.tee import shape
from libs.transparency.leaf import LEAF_SIZE
from libs.transparency.merkle import HASH_SIZE

VERSION = 1
MAX_BYTES = 256 << 20
_MEMBERS = frozenset({"v", "gathered_at", "ledger", "checkpoint", "stages", "keysets"})
_LEDGER = frozenset({"certificate", "evidence", "origin"})
_LOGGED = frozenset({"entry", "salt", "leaf_data", "index", "path"})
_MAX_PATH = 64


class LineageFileMalformed(MeshError):
    """The bytes are no lineage in the form of this version."""

    code = Code.INVALID_ARGUMENT
    reason = "LINEAGE_FILE_MALFORMED"


def encode(lineage: Lineage) -> bytes:
    """Return the file."""
    return jcs.dumps(
        {
            "v": VERSION,
            "gathered_at": lineage.gathered_at,
            "ledger": {
                "certificate": lineage.ledger.certificate.hex(),
                "evidence": lineage.ledger_evidence.hex(),
                "origin": lineage.ledger.origin,
            },
            "checkpoint": lineage.checkpoint.hex(),
            "stages": [_members(each) for each in lineage.stages],
            "keysets": [_members(each) for each in lineage.keysets],
        }
    )


def decode(data: bytes) -> Lineage:
    """Read a file. Proves nothing. Raises `LineageFileMalformed`."""
    try:
        members = shape.members(jcs.loads(data), _MEMBERS, "the file")
        if shape.integer(members["v"], "v") != VERSION:
            raise ValueError(f"v must be {VERSION}")
        ledger = shape.members(members["ledger"], _LEDGER, "ledger")
        evidence = shape.binary(ledger["evidence"], "evidence")
        return Lineage(
            gathered_at=shape.integer(members["gathered_at"], "gathered_at"),
            ledger=LedgerName(
                shape.binary(ledger["certificate"], "certificate"),
                hashlib.sha256(evidence).hexdigest(),
                shape.text(ledger["origin"], "origin"),
            ),
            ledger_evidence=evidence,
            checkpoint=shape.binary(members["checkpoint"], "checkpoint"),
            stages=_entries(members["stages"], "stages"),
            keysets=_entries(members["keysets"], "keysets"),
        )
    except (ValueError, jcs.JsonMalformed) as error:
        raise LineageFileMalformed(f"no lineage in the form of version {VERSION}: {error}") from error


def _members(logged: LoggedEntry) -> dict[str, Any]:
    return {
        "entry": logged.canonical.hex(),
        "salt": logged.salt.hex(),
        "leaf_data": logged.leaf_data.hex(),
        "index": logged.index,
        "path": [node.hex() for node in logged.path],
    }


def _entries(value: Any, what: str) -> tuple[LoggedEntry, ...]:
    return tuple(_entry(each, what) for each in _list(value, what, MAX_STAGES))


def _entry(value: Any, what: str) -> LoggedEntry:
    members = shape.members(value, _LOGGED, what)
    return LoggedEntry(
        canonical=shape.binary(members["entry"], "entry"),
        salt=shape.binary(members["salt"], "salt", SALT_SIZE),
        leaf_data=shape.binary(members["leaf_data"], "leaf_data", LEAF_SIZE),
        index=shape.integer(members["index"], "index"),
        path=tuple(shape.binary(node, "path", HASH_SIZE) for node in _list(members["path"], "path", _MAX_PATH)),
    )


def _list(value: Any, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{what} must be a list of at most {most}")
    return value
