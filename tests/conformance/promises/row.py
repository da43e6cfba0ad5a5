"""One row of a table of promises, and its line in a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A thing that happens, by which name the code knows what came of it, and who proves that."""

    way: str
    name: str
    """A stable reason, as `MeshError`s have them, or how an exchange ended, as receipts say it."""
    test: str
    """Its id as pytest has it, below tests/; without its parameters where all of them prove it."""


def table(heads: tuple[str, str, str], rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|"]
    for row in rows:
        path, _, test = row.test.partition("::")
        lines.append(f"| {row.way} | `{row.name}` | `{path}` `{test}` |")
    return "\n".join(lines) + "\n"
