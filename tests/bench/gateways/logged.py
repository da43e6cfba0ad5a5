"""Responsible for telling which answers that clients have are not in the log, read once the mesh has stopped."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from teemesh.ledger.v1 import acknowledgement_pb2

from libs import jcs
from libs.aci.receipt import parse
from libs.audit.log.description import read_description
from libs.audit.log.findings import Findings, Status
from libs.audit.log.place import Place
from libs.audit.log.reading import BLOCK_LEAVES, DESCRIPTION
from libs.audit.log.walk import Located, Walk
from libs.events.records import commit_to, parse_entry
from libs.transparency import leaf as leaves
from libs.transparency import merkle
from libs.transparency.acknowledgement import Statement
from services.cli.ledger.files import LogFolder

_FIND = "SELECT receipt, entry, salt, acknowledgement FROM receipts WHERE receipt_id = ?"


def leaf_hashes(folder: Path) -> list[bytes]:
    """Read a log to its end by the auditor's reading, which shares no code with the ledger; return its leaf hashes."""
    hashes: list[bytes] = []

    def take(located: Located) -> None:
        hashes.extend(located.frame.leaf_hashes)

    findings = Findings()
    description = read_description((folder / DESCRIPTION).read_bytes())
    Walk(LogFolder(folder), Place(description.origin, BLOCK_LEAVES), findings, lambda frame: (), take).run()
    assert findings.worst is Status.SOUND, findings
    return hashes


def unlogged(answers: Mapping[str, bytes], receipts: Path, hashes: list[bytes]) -> list[str]:
    """Return what is wrong, one line each, with the answers, given as SHA-256 of the body by receipt id: each must have
    a receipt over its body, in an entry to which a leaf of its own in the log commits.
    """
    taken: dict[int, str] = {}
    wrong = []
    with closing(sqlite3.connect(f"file:{receipts}?mode=ro", uri=True)) as store:
        for receipt_id, body_hash in answers.items():
            row = store.execute(_FIND, (receipt_id,)).fetchone()
            index = None if row is None else _index_of(row, body_hash, hashes)
            if index is None:
                wrong.append(f"{receipt_id}: not in the log")
            elif index in taken:
                wrong.append(f"{receipt_id}: on the leaf of {taken[index]}")
            else:
                taken[index] = receipt_id
    return wrong


def _index_of(row: tuple[bytes, bytes, bytes, bytes], body_hash: bytes, hashes: list[bytes]) -> int | None:
    """Return the leaf that commits to the receipt, None where none does."""
    receipt, entry, salt, acknowledged = row
    acknowledgement = acknowledgement_pb2.Acknowledgement.FromString(acknowledged)
    index = Statement.parse(acknowledgement.statement).index
    leaf = leaves.parse(acknowledgement.leaf_data)
    is_logged = (
        parse(receipt).returned.body_hash == f"sha256:{body_hash.hex()}"
        and parse_entry(entry).body == jcs.loads(receipt)
        and commit_to(salt, entry) == leaf.commitment
        and index < len(hashes)
        and merkle.leaf_hash(acknowledgement.leaf_data) == hashes[index]
    )
    return index if is_logged else None


def body_hash_of(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
