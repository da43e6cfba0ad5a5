"""Responsible for reading the members of parsed JSON strictly.

Every function raises `ValueError` with the member's name; the parser that calls it turns that into its own error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def members(value: Any, names: frozenset[str], what: str) -> Mapping[str, Any]:
    """Return the object when it has exactly these members."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object")
    if value.keys() == names:
        return value
    missing = sorted(names - value.keys())
    raise ValueError(f"{what} lacks {missing[0]}" if missing else f"{what} has members that are not known")


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a string")
    value.encode()  # A lone surrogate has no UTF-8 form: UnicodeEncodeError is a ValueError.
    return value


def integer(value: Any, what: str, most: int = 2**53 - 1) -> int:
    """Return a whole number from 0 to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{what} must be a whole number from 0 to {most}")
    return value


def binary(value: Any, what: str, *sizes: int) -> bytes:
    """Return the bytes of a lower-case hex string; of one of `sizes` when any is given."""
    try:
        data = bytes.fromhex(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be lower-case hex") from None
    # `fromhex` also takes capitals and spaces; written back, only the one form is the same.
    if data.hex() != value:
        raise ValueError(f"{what} must be lower-case hex")
    if sizes and len(data) not in sizes:
        raise ValueError(f"{what} has {len(data)} bytes")
    return data
