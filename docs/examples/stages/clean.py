"""A preprocessing: `python clean.py DATA CLEANED` writes every file of a folder in lower case."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Clean."""
    given, made = map(Path, sys.argv[1:])
    made.mkdir()
    for each in given.iterdir():
        (made / each.name).write_text(each.read_text().lower())


if __name__ == "__main__":
    main()
