"""What a simulation ends with when a promise of the log is not kept."""

from __future__ import annotations


class Broken(AssertionError):
    """Something that must never be was."""
