"""The aggregator's part of a round: `python aggregator.py MODEL.json NEXT.json NOISE UPDATE.json...`.

NOISE is the multiplier of the Gaussian mechanism: its standard deviation for each bound on an update's length; 0 adds
none. What privacy that gives over how many rounds is for an accountant to say, by this multiplier.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from training import averaged

_BOUND = 10.0
"""No worker moves the sum of the updates further than this."""


def main() -> None:
    """Average what the workers wrote, and write the next model."""
    given, result, multiplier = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    model = json.loads(given.read_text())
    updates = [json.loads(Path(each).read_text()) for each in sys.argv[4:]]
    # The kernel's randomness: noise that could be drawn again could be taken away again.
    source = random.SystemRandom()
    noise = [source.gauss(0.0, multiplier * _BOUND) for _ in model]
    result.write_text(json.dumps(averaged(model, updates, _BOUND, noise)))


if __name__ == "__main__":
    main()
