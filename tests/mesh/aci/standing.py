"""What of the specification is not kept yet, and for which reason: a test that passes all the same is an error."""

from __future__ import annotations

import pytest


def not_yet(reason: str) -> pytest.MarkDecorator:
    """Mark a check that fails today, by its own assertion and by nothing else."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)
