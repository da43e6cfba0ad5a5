"""It is responsible for remembering with which epoch of which key of the KMS weights were opened.

A node that is restarted finds them opened and asks for no key. What its file says by then may be another key, so that
is not what its receipts name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs import jcs
from libs.files import write_durably


@dataclass(frozen=True, slots=True)
class WeightsKey:
    """One epoch of a key."""

    name: str
    epoch: int


class OpenedWith:
    """One node's note of it, beside what else it remembers of its weights."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, key: WeightsKey, weights_sha256: bytes) -> None:
        """Write down the key of weights that are about to lie in the clear: MUST come before they do. It blocks."""
        note = {"weights_sha256": weights_sha256.hex(), "key": key.name, "epoch": key.epoch}
        write_durably(self._path, jcs.dumps(note))

    def key_of(self, weights_sha256: bytes) -> WeightsKey | None:
        """Return the key of these weights; None where nothing was written of them, or it cannot be read. It blocks."""
        try:
            note = jcs.loads_object(self._path.read_bytes())
        except (OSError, jcs.JsonMalformed):
            return None
        match note:
            case {"weights_sha256": str(named), "key": str(name), "epoch": int(epoch)}:
                return WeightsKey(name, epoch) if named == weights_sha256.hex() else None
            case _:
                return None
