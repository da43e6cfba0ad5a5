"""The aggregator's part of a round: `python aggregator.py MODEL.json NEXT.json UPDATE.json...`.

With `--noise` it adds the Gaussian mechanism's noise, and says in `--privacy FILE` what all rounds until this one spend
together, for `teemesh pipeline record --privacy FILE`. That needs OpenDP: `make federated` installs it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training import averaged, summed

_BOUND = 10.0
"""No worker moves the sum of the updates further than this."""


def main() -> None:
    """Average what the workers wrote, and write the next model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("next", type=Path)
    parser.add_argument("updates", type=Path, nargs="+")
    parser.add_argument("--noise", type=float, help="standard deviation for each bound on an update's length")
    parser.add_argument("--round", type=int, default=1, help="the number of this round; all had the same noise")
    parser.add_argument("--delta", default="0.00001")
    parser.add_argument("--privacy", type=Path, help="where to say what was spent")
    args = parser.parse_args()
    model = json.loads(args.model.read_text())
    total = summed([json.loads(each.read_text()) for each in args.updates], _BOUND)
    if args.noise is not None:
        from accounting import GaussianNoise

        noise = GaussianNoise(_BOUND, args.noise)
        total = noise.added_to(total)
        if args.privacy is not None:
            args.privacy.write_text(json.dumps(noise.spent(args.round, args.delta)))
    args.next.write_text(json.dumps(averaged(model, total, len(args.updates))))


if __name__ == "__main__":
    main()
