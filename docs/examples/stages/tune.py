"""In the place of a fine-tuning: `python tune.py BASE CLEANED TUNED` copies the base.

A local mesh's policy lists the weights that come with it and no others: a tuner that did more would make weights that
no node there may serve.
"""

from __future__ import annotations

import shutil
import sys


def main() -> None:
    """Copy."""
    base, _, made = sys.argv[1:]
    shutil.copytree(base, made)


if __name__ == "__main__":
    main()
