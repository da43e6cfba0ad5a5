"""Which code the faults are tried on, so that what other code was found to do is not taken for what this does."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from tests.faults.ledger.elsewhere import ROOT

SOURCES = ("services/ledger", "libs", "tests/faults", "tests/fakes", "tests/unit/services/ledger")


def digest_of(root: Path = ROOT, folders: Sequence[str] = SOURCES) -> str:
    """Return a digest of every source file's name and content below these folders, as hex."""
    digest = sha256()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        for part in (str(path.relative_to(root)).encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
