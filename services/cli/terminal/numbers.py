"""It is responsible for numbers on the command line: within bounds, or refused with what they are."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def number_within(least: int, most: int) -> Callable[[str], int]:
    """Return a type for `argparse`: decimal digits, from `least` to `most`, neither below zero."""

    def read(text: str) -> int:
        # The length first: Python refuses to read thousands of digits.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"give a number from {least} to {most}")
        return int(text)

    return read
