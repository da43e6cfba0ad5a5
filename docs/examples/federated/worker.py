"""One worker's part of a round: `python worker.py DATA.csv MODEL.json UPDATE.json`. The data stay where they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from training import read_rows, train

_EPOCHS, _RATE = 40, 0.5


def main() -> None:
    """Train on this worker's own rows, and write how the model would move."""
    data, given, update = map(Path, sys.argv[1:])
    model = json.loads(given.read_text())
    trained = train(model, read_rows(data), _EPOCHS, _RATE)
    update.write_text(json.dumps([new - old for new, old in zip(trained, model, strict=True)]))


if __name__ == "__main__":
    main()
