"""The kinds of entry, for those who write entries and know nothing of leaves."""

from __future__ import annotations

from libs.transparency.leaf import Kind

__all__ = ["Kind"]
