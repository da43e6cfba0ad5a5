"""Responsible for showing what was measured: one table of ratios for people, the same numbers plain for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tests.bench.samples import Samples, percentile


@dataclass(frozen=True, slots=True)
class Row:
    """One thing beside what it is held against."""

    name: str
    base: Samples
    ours: Samples

    def numbers(self) -> dict[str, float]:
        """Milliseconds, requests a second, and ratios of ours to the base."""
        base, ours = self.base, self.ours
        numbers = {
            "base_count": len(base.whole),
            "count": len(ours.whole),
            "base_p50_ms": base.p50 * 1000,
            "p50_ms": ours.p50 * 1000,
            "added_p50_ms": (ours.p50 - base.p50) * 1000,
            "p50_ratio": ours.p50 / base.p50,
            "base_p99_ms": base.p99 * 1000,
            "p99_ms": ours.p99 * 1000,
            "added_p99_ms": (ours.p99 - base.p99) * 1000,
            "base_per_second": base.rate,
            "per_second": ours.rate,
            "rate_ratio": ours.rate / base.rate,
        }
        if base.first and ours.first:
            base_first, first = percentile(base.first, 50), percentile(ours.first, 50)
            numbers |= {"base_first_byte_p50_ms": base_first * 1000, "first_byte_p50_ms": first * 1000}
        return numbers


@dataclass(frozen=True, slots=True)
class Section:
    """What belongs together. `base` and `ours` say what the two columns are."""

    title: str
    base: str
    ours: str
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)


def console_for_tables() -> Console:
    """One that is wide enough where nobody says how wide it is."""
    return Console(width=None if Console().is_terminal else 180)


def show(section: Section, console: Console) -> None:
    table = Table(title=section.title, title_justify="left")
    table.add_column("")
    for heading in (
        "n",
        "base p50",
        "p50",
        "added p50",
        "ratio",
        "base p99",
        "p99",
        "added p99",
        "base /s",
        "/s",
        "ratio",
    ):
        table.add_column(heading, justify="right")
    for row in section.rows:
        of = row.numbers()
        table.add_row(
            row.name,
            f"{of['count']:.0f}",
            *(_milliseconds(of[name]) for name in ("base_p50_ms", "p50_ms", "added_p50_ms")),
            f"{of['p50_ratio']:.2f}x",
            *(_milliseconds(of[name]) for name in ("base_p99_ms", "p99_ms", "added_p99_ms")),
            f"{of['base_per_second']:.1f}",
            f"{of['per_second']:.1f}",
            f"{of['rate_ratio']:.2f}x",
        )
    console.print(table)
    console.print(
        f"base: {section.base}; beside it: {section.ours}. Milliseconds; p99 of under 100 samples is the largest.",
        highlight=False,
    )
    for note in section.notes:
        console.print(note, highlight=False, soft_wrap=True)
    for row in section.rows:
        plain = " ".join(f"{name}={value:.4g}" for name, value in row.numbers().items())
        console.print(f"{row.name.replace(' ', '_')} {plain}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"
