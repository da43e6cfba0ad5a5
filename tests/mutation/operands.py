"""Mutants beside the raised refusals: one operand of an `and` or `or` that a refusal depends on does not count."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.mutation.run import Mutant
from tests.mutation.sites import Source, rewritten
from tests.mutation.trial import Baseline

OPERAND = "operand"


@dataclass(frozen=True, slots=True)
class Operand:
    """One of the words of a condition under which a function refuses; `count` tells twins apart."""

    module: str
    function: str
    condition: str
    word: str
    count: int
    # Where the condition starts, and which of its words this is.
    at: tuple[int, int]
    number: int

    @property
    def name(self) -> str:
        twin = f" [{self.count}]" if self.count else ""
        return f"{self.module.removeprefix('libs.tee.')}.{self.function}: `{self.word}` of `{self.condition}`{twin}"


def operands(every: Sequence[Source]) -> list[Operand]:
    return [operand for source in every for operand in _operands(source)]


def operand_mutants(sources: Mapping[str, Source], rows: Sequence[Baseline]) -> list[Mutant]:
    """No row says beforehand that it rests on an operand: at least one of them has to."""
    return [
        Mutant(
            operand.name,
            OPERAND,
            lambda operand=operand: _without(sources[operand.module], operand),  # type: ignore[misc]
            decisive=(),
            reaching=[row for row in rows if row.entered(operand.module, operand.function)],
        )
        for operand in operands(list(sources.values()))
    ]


def _without(source: Source, operand: Operand) -> AbstractContextManager[None]:
    return rewritten(source, operand.function, _Without(operand))


class _Without(ast.NodeTransformer):
    def __init__(self, operand: Operand) -> None:
        self._operand = operand

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        if (node.lineno, node.col_offset) != self._operand.at or ast.unparse(node) != self._operand.condition:
            self.generic_visit(node)
            return node
        left = [value for number, value in enumerate(node.values) if number != self._operand.number]
        return left[0] if len(left) == 1 else ast.copy_location(ast.BoolOp(node.op, left), node)


def _operands(source: Source) -> Iterator[Operand]:
    seen: dict[tuple[str, str, str], int] = {}
    for function, condition in _conditions(source.tree, ()):
        words = ast.unparse(condition)
        for number, value in enumerate(condition.values):
            word = ast.unparse(value)
            count = seen[(function, words, word)] = seen.get((function, words, word), -1) + 1
            at = (condition.lineno, condition.col_offset)
            yield Operand(source.module.__name__, function, words, word, count, at, number)


def _conditions(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, ast.BoolOp]]:
    """Every `and` and `or` in the test of an `if` that raises, with the qualified name of its function."""
    for child in ast.iter_child_nodes(node):
        inner = (*scope, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else scope
        if isinstance(child, ast.If) and any(isinstance(each, ast.Raise) for each in child.body):
            for part in ast.walk(child.test):
                if isinstance(part, ast.BoolOp):
                    yield ".".join(scope), part
        yield from _conditions(child, inner)
