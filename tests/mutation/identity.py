"""Where identity and keys refuse: every `raise` and every call that only verifies, and mutants without them.

As `sites` does it for `libs.tee`, but a relay is refused somewhere behind a connection: which check it was is told by
where errors passed, whoever caught them in the end.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

from libs.errors import MeshError
from services.devtee.machine import Machine
from tests.mutation.changes import Weaken, Weakening
from tests.mutation.identity_places import MODULES
from tests.mutation.sites import Source, rewritten
from tests.unit.libs.identity.relays.ground import ground
from tests.unit.libs.identity.relays.row import Row

ACCEPTED = "accepted"
_ATTACK_SECONDS = 30.0
_COMPARED = 1000
"""What crosses the wire of an error's words, at least."""
_VERIFYING = re.compile(r"_?(verify|require)(_\w+)?|spend")


Line = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Check:
    """One statement that refuses; `count` tells twins apart."""

    module: str
    function: str
    statement: str
    count: int
    lines: tuple[int, int]

    @property
    def name(self) -> str:
        twin = f" [{self.count}]" if self.count else ""
        return f"{self.module}.{self.function}: {self.statement}{twin}"

    def taken_away(self) -> AbstractContextManager[None]:
        """In this process, its function does everything but refuse there."""
        return rewritten(_source(self.module), self.function, _Without(self.lines))


@dataclass(frozen=True, slots=True)
class Trial:
    """A row with every check in place."""

    row: Row
    outcome: str
    rests_on: frozenset[Check]
    """Checks through which the refusal passed, or what it was made from."""
    passed: frozenset[Check]
    """Checks that refused anything at all meanwhile: somebody may have caught that, and acted on it."""


def checks() -> list[Check]:
    return [check for name in MODULES for check in _checks(_source(name))]


def outcome(row: Row, machine: Machine) -> str:
    """The reason of the refusal, or what else became of it, on a mesh of its own."""
    return _said(_attacked(row, machine))


def trial(row: Row, machine: Machine, every: Sequence[Check]) -> Trial:
    at = {
        (_source(check.module).path, line): check
        for check in every
        for line in range(check.lines[0], check.lines[1] + 1)
    }
    with _Trace(frozenset(path for path, _ in at)) as trace:
        error = _attacked(row, machine)
    return Trial(
        row,
        _said(error),
        rests_on=frozenset(at[line] for line in trace.lines_of(error) if line in at),
        passed=frozenset(at[line] for _, line in trace.passed if line in at),
    )


def unnoticed(check: Check, trials: Sequence[Trial], machine: Machine, most: int | None = None) -> list[str]:
    """The rows that rest on a check and are told the same without it: there should be none.

    Where what it refused was caught on the way, one of the rows has to notice. `most` is how many rows are tried.
    """
    resting = [each for each in trials if check in each.rests_on][:most]
    tried = resting or [each for each in trials if check in each.passed]
    with check.taken_away():
        same = [each.row.name for each in tried if outcome(each.row, machine) == each.outcome]
    if not tried:
        return ["no row rests on it"]
    return same if resting or len(same) == len(tried) else []


def undisturbed(weakening: Weakening, rows: Sequence[Trial], machine: Machine) -> list[str]:
    """Those of the rows that are told the same when the expression is the weaker one."""
    with rewritten(_source(weakening.module), weakening.function, Weaken(weakening)):
        return [each.row.name for each in rows if outcome(each.row, machine) == each.outcome]


def _attacked(row: Row, machine: Machine) -> Exception | None:
    return asyncio.run(_attack(row, machine))


async def _attack(row: Row, machine: Machine) -> Exception | None:
    async with ground(machine) as fresh:
        try:
            async with asyncio.timeout(_ATTACK_SECONDS):
                await row.attack(fresh)
        # Without a check anything may happen, and that is what is asked.
        except Exception as error:  # noqa: BLE001
            return error
    return None


def _said(error: Exception | None) -> str:
    if isinstance(error, MeshError):
        return error.reason
    return ACCEPTED if error is None else f"crash: {type(error).__name__}"


@cache
def _source(module: str) -> Source:
    """The syntax of what runs: read once, and changed by nobody meanwhile."""
    return Source.of(importlib.import_module(module))


def _checks(source: Source) -> Iterator[Check]:
    seen: dict[tuple[str, str], int] = {}
    within = MODULES[source.module.__name__]
    for function, node in _refusing(source.tree, ()):
        if within and function not in within:
            continue
        statement = ast.unparse(node.exc if isinstance(node, ast.Raise) and node.exc else node)
        count = seen[(function, statement)] = seen.get((function, statement), -1) + 1
        yield Check(source.module.__name__, function, statement, count, (node.lineno, node.end_lineno or node.lineno))


def _refusing(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, ast.Raise | ast.Expr]]:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (*scope, child.name)
        elif isinstance(child, ast.Raise | ast.Expr) and _refuses(child):
            yield ".".join(scope), child
        yield from _refusing(child, inner)


def _refuses(node: ast.Raise | ast.Expr) -> bool:
    """Whether this raises an error of its own, or calls what returns nothing and only refuses."""
    if isinstance(node, ast.Raise):
        return node.exc is not None
    call = node.value
    if not isinstance(call, ast.Call):
        return False
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return _VERIFYING.fullmatch(called) is not None


class _Without(ast.NodeTransformer):
    def __init__(self, lines: tuple[int, int]) -> None:
        self._lines = lines

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return self._replaced(node)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return self._replaced(node)

    def _replaced(self, node: ast.Raise | ast.Expr) -> ast.stmt:
        if (node.lineno, node.end_lineno) != self._lines:
            return node
        return ast.copy_location(ast.Pass(), node)


class _Trace:
    """Notes the lines of these files that errors passed through, in order."""

    def __init__(self, paths: frozenset[str]) -> None:
        self._paths = paths
        self._before: Any = None
        self.passed: list[tuple[Exception, Line]] = []

    def __enter__(self) -> _Trace:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.settrace(self._before)

    def lines_of(self, error: Exception | None) -> set[Line]:
        """Where the error passed, or the last one that reads like it: one that came over the wire is another object."""
        alike = [each for each, _ in self.passed if _words(each) == _words(error)]
        links: list[BaseException] = [*alike[-1:]]
        for link in links:
            links += [cause for cause in (link.__cause__, link.__context__) if cause is not None]
        return {line for each, line in self.passed if any(each is link for link in links)}

    def _call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        return self._line if frame.f_code.co_filename in self._paths else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "exception" and isinstance(argument[1], Exception):
            self.passed.append((argument[1], (frame.f_code.co_filename, frame.f_lineno)))
        return self._line


def _words(error: Exception | None) -> tuple[str, str]:
    return _said(error), str(error)[:_COMPARED]
