"""Logistic regression in plain Python: a model is one weight for each feature, and one more for the constant."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

Vector = Sequence[float]


def read_rows(path: Path) -> list[tuple[list[float], int]]:
    """Return features, the constant 1.0 among them, and labels (0 or 1): the last column of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [([*map(float, row[:-1]), 1.0], int(row[-1])) for row in csv.reader(file)]


def probability(model: Vector, features: Vector) -> float:
    """Return how likely the label is 1."""
    score = sum(weight * feature for weight, feature in zip(model, features, strict=True))
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, score))))


def train(model: Vector, rows: Sequence[tuple[Vector, int]], epochs: int, rate: float) -> list[float]:
    """Return the model after so many steps of gradient descent over all rows."""
    current = list(model)
    for _ in range(epochs):
        gradient = [0.0] * len(current)
        for features, label in rows:
            error = probability(current, features) - label
            for place, feature in enumerate(features):
                gradient[place] += error * feature / len(rows)
        current = [weight - rate * slope for weight, slope in zip(current, gradient, strict=True)]
    return current


def clipped(update: Vector, bound: float) -> list[float]:
    """Return the update, made shorter where its length (L2) is beyond the bound. Raises `ValueError` if it has none."""
    length = math.sqrt(sum(part * part for part in update))
    if not math.isfinite(length):
        raise ValueError("an update has parts that are no numbers")
    return [part * min(1.0, bound / length) for part in update] if length else list(update)


def summed(updates: Sequence[Vector], bound: float) -> list[float]:
    """Return the sum of the clipped updates."""
    return [sum(parts) for parts in zip(*(clipped(update, bound) for update in updates), strict=True)]


def averaged(model: Vector, total: Vector, number: int) -> list[float]:
    """Return the model moved by the mean of so many updates, given their sum."""
    return [weight + part / number for weight, part in zip(model, total, strict=True)]
