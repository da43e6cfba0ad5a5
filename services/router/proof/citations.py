"""Responsible for the documents that receipts rest on, evidence and sessions by their digests: kept while one is cited.

Receipts go in the order in which they came. So a document is needed until the last one that cited it has gone, and one
number for each says when that is. All of it runs inside a transaction of the store.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

AT_LEAST_SECONDS = 24 * 3600
"""What was kept so lately stays: a receipt that is on its way may cite it, and a client be about to ask for it."""

_TOLD_AGAIN_SECONDS = 3600
"""Whoever asks for a proof has its documents kept: so often at most it is written down again, or a loop of one client
would have all receipts wait for the disk.
"""

_NEXT = "COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'receipts'), 0) + 1"


def keep(transaction: sqlite3.Connection, digest: bytes, document: bytes, now: int) -> None:
    """Keep a document for the next receipts."""
    transaction.execute("INSERT OR IGNORE INTO evidence (digest, document) VALUES (?, ?)", (digest, document))
    transaction.execute(
        f"INSERT INTO cited (digest, position, kept_at) VALUES (?, {_NEXT}, ?) "  # noqa: S608 - constant text
        "ON CONFLICT (digest) DO UPDATE SET position = excluded.position, kept_at = excluded.kept_at "
        "WHERE cited.kept_at + ? < excluded.kept_at",
        (digest, now, _TOLD_AGAIN_SECONDS),
    )


def cite(transaction: sqlite3.Connection, position: int, cited: Mapping[bytes, bytes | None], now: int) -> None:
    """Take note of what the receipt at a position rests on. None stands for a document that is kept already."""
    for digest, document in cited.items():
        # Nearly always it is here: the document, some 50 KB, is then not even handed over.
        known = transaction.execute("UPDATE cited SET position = max(position, ?) WHERE digest = ?", (position, digest))
        if known.rowcount == 0 and document is not None:
            transaction.execute("INSERT OR IGNORE INTO evidence (digest, document) VALUES (?, ?)", (digest, document))
            transaction.execute(
                "INSERT INTO cited (digest, position, kept_at) VALUES (?, ?, ?)", (digest, position, now)
            )


def let_go(transaction: sqlite3.Connection, now: int, limit: int) -> int:
    """Delete documents that no receipt here cites any more; return how many."""
    (oldest,) = transaction.execute(
        f"SELECT COALESCE((SELECT min(position) FROM receipts), {_NEXT})"  # noqa: S608 - constant text
    ).fetchone()
    before = now - AT_LEAST_SECONDS - _TOLD_AGAIN_SECONDS
    gone = transaction.execute(
        "SELECT digest FROM cited WHERE position < ? AND kept_at < ? LIMIT ?", (oldest, before, limit)
    ).fetchall()
    transaction.executemany("DELETE FROM evidence WHERE digest = ?", gone)
    transaction.executemany("DELETE FROM cited WHERE digest = ?", gone)
    return len(gone)
