"""It is responsible for reading one gauge out of what an engine says of itself, in Prometheus's text format."""

from __future__ import annotations

import math


def permille_of(text: str, gauge: str) -> int | None:
    """Return a gauge that runs from 0 to 1, in thousandths: the largest of its samples, one per device or worker.

    None when there is no such gauge, or it says something that no share can be.
    """
    shares = [share for line in text.splitlines() if (share := _sample(line, gauge)) is not None]
    if not shares or not all(0.0 <= share <= 1.0 for share in shares):
        return None
    return round(max(shares) * 1000)


def _sample(line: str, gauge: str) -> float | None:
    """The value in a line `name{labels} value [timestamp]` of this gauge."""
    if not line.startswith(gauge):
        return None
    rest = line[len(gauge) :]
    if rest.startswith("{"):
        rest = rest.rpartition("}")[2]
    elif not rest.startswith(" "):
        return None
    try:
        return float(rest.split()[0])
    except (IndexError, ValueError):
        return math.nan
