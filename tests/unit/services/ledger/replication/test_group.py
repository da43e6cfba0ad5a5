"""A member that is elected writes nothing where a witness has cosigned more, or something else, than it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.ledger.replication.group import require_witnessed
from services.ledger.storage.damage import LogRolledBack
from services.ledger.storage.recovery import Floor

from .members import writer_at


def test_a_writer_must_hold_what_was_cosigned(tmp_path: Path) -> None:
    with writer_at(tmp_path / "log") as writer:
        writer.write([1], [2, 3, 4], [5])
        store = writer.store
        held = [Floor(size, store.index.tree.root(size), "a witness") for size in range(6)]
        require_witnessed(store, held)
        for other in (Floor(6, bytes(32), "a witness"), Floor(4, bytes(32), "a witness")):
            with pytest.raises(LogRolledBack):
                require_witnessed(store, [*held, other])
