"""Run a ledger that seals its last segment whenever it stops, as one of many entries does."""

from __future__ import annotations

import runpy

from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore


def main() -> None:
    # What the ledger opens its log with where it says nothing else: it never does.
    defaults = LogStore.__init__.__kwdefaults__ or {}
    LogStore.__init__.__kwdefaults__ = {**defaults, "geometry": Geometry(sealed_at_stop=1)}
    runpy.run_module("services.ledger", run_name="__main__")


if __name__ == "__main__":
    main()
