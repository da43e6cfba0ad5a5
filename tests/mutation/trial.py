"""What becomes of each row, as the code is and without one of its checks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from libs.errors import MeshError
from libs.tee.steps import SILENT
from tests.mutation.sites import Site, Source
from tests.unit.libs.tee.bad_evidence.edges import EDGES
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row

ACCEPTED = "accepted"

Line = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A prepared row, and how it fares with every check in place."""

    row: Row
    present: Present
    outcome: str
    # Sites whose error is the refusal, or became it.
    decisive: frozenset[Site]
    # Sites that were reached at all: a rule that is one of several may refuse in vain.
    reached: frozenset[Site]
    words: str
    # Functions that ran: module and qualified name.
    functions: frozenset[tuple[str, str]]

    def entered(self, module: str, function: str) -> bool:
        return (module, function) in self.functions


def outcome(present: Present) -> str:
    """Accepted and until when, the reason of the refusal, or what crashed."""
    try:
        return _accepted(present(SILENT))
    except MeshError as refusal:
        return refusal.reason
    # A mutant may fail in any way at all, and that is what is asked.
    except Exception as crash:  # noqa: BLE001
        return f"crash: {type(crash).__name__}"


def _accepted(verdict: object) -> str:
    return _until(getattr(verdict, "valid_until", None))


def _until(end: int | None) -> str:
    return ACCEPTED if end is None else f"{ACCEPTED} until {end}"


def edge_rows() -> list[Row]:
    """Evidence at the edge of what is accepted, as rows whose reason is the verdict's end."""
    return [Row(f"edge: {name}", None, _until(until), make) for name, (until, make) in EDGES.items()]


def baselines(
    rows: Iterable[Row], benches: Benches, sources: Mapping[str, Source], sites: Sequence[Site]
) -> list[Baseline]:
    """Prepare every row once, and see where it is refused."""
    at = {(sources[site.module].path, line): site for site in sites for line in site.every_line}
    names = {source.path: name for name, source in sources.items()}
    return [_baseline(row, row.make(benches), at, names) for row in rows]


def _baseline(row: Row, present: Present, at: Mapping[Line, Site], names: Mapping[str, str]) -> Baseline:
    error: MeshError | None = None
    said = ""
    with _Trace(names) as trace:
        try:
            said = _accepted(present(SILENT))
        except MeshError as refusal:
            error, said = refusal, refusal.reason
    reached = frozenset(at[line] for line in trace.lines if line in at)
    decisive = frozenset(at[line] for line in _raised(error) if line in at)
    # A returned error passes through no traceback of its own: what returned it was reached, and nothing after it.
    decisive |= frozenset(site for site in reached if site.returns)
    return Baseline(row, present, said, decisive, reached, str(error), frozenset(trace.functions))


def _raised(error: BaseException | None) -> Iterator[Line]:
    """Where an error passed, and where those that it was made from did."""
    while error is not None:
        yield from _frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _frames(trace: TracebackType | None) -> Iterator[Line]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


class _Trace:
    """Notes the functions and lines that run in these files."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._before: Any = None
        self.lines: set[Line] = set()
        self.functions: set[tuple[str, str]] = set()

    def __enter__(self) -> _Trace:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        name = self._names.get(frame.f_code.co_filename)
        if name is None:
            return None
        self.functions.add((name, frame.f_code.co_qualname))
        return self._line

    def _line(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line
