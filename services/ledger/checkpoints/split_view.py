"""It is responsible for the evidence of two histories of this log: kept whole, in a file that anyone can judge."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from libs import jcs
from libs.files import fsync_dir, write_durably

FOLDER = "split-view"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SplitView:
    """Two signed notes of one log, neither of which extends the other."""

    ours: bytes
    theirs: bytes
    """With the cosignature of the witness that showed it."""
    witness: str
    """Its verifier key."""

    @property
    def name(self) -> str:
        return f"{FOLDER}/{sha256(self.theirs).hexdigest()[:16]}.json"

    def document(self) -> bytes:
        return jcs.dumps(
            {"v": _VERSION, "ours": self.ours.decode(), "theirs": self.theirs.decode(), "witness": self.witness}
        )


def keep(directory: Path, found: SplitView) -> None:
    """Write the evidence. It IS durable when this returns."""
    (directory / FOLDER).mkdir(mode=0o700, exist_ok=True)
    fsync_dir(directory)
    write_durably(directory / found.name, found.document())
