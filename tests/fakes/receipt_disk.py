"""A disk below a router's receipts that fails at what a test names, and is mended."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def tell(folder: Path, statement: str) -> None:
    """Change the store's file behind the router's back, so that what it does there fails as on a bad disk."""
    with closing(sqlite3.connect(folder / "receipts.sqlite")) as other, other:
        other.execute(statement)


def fail(folder: Path, what: str) -> None:
    tell(folder, f"CREATE TRIGGER broken BEFORE {what} BEGIN SELECT RAISE(ABORT, 'the disk'); END")


def mend(folder: Path) -> None:
    tell(folder, "DROP TRIGGER broken")
