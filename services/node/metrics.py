"""It is responsible for reading numbers out of what an engine says of itself, in Prometheus's text format."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping


def permille_of(text: str, gauge: str) -> int | None:
    """Return a gauge that runs from 0 to 1, in thousandths: the largest of its samples, one per device or worker.

    None when there is no such gauge, or it says something that no share can be.
    """
    shares = _samples(text, gauge)
    if not shares or not all(0.0 <= share <= 1.0 for share in shares):
        return None
    return round(max(shares) * 1000)


def totals_of(text: str, names: Collection[str]) -> Mapping[str, float]:
    """Return the sum of each metric's samples, of those that are there and are numbers."""
    sums = {name: sum(samples) for name in names if (samples := _samples(text, name))}
    return {name: total for name, total in sums.items() if math.isfinite(total)}


def _samples(text: str, name: str) -> list[float]:
    return [value for line in text.splitlines() if (value := _sample(line, name)) is not None]


def _sample(line: str, name: str) -> float | None:
    """The value in a line `name{labels} value [timestamp]` of this metric."""
    if not line.startswith(name):
        return None
    rest = line[len(name) :]
    if rest.startswith("{"):
        rest = rest.rpartition("}")[2]
    elif not rest.startswith(" "):
        return None
    try:
        return float(rest.split()[0])
    except (IndexError, ValueError):
        return math.nan
