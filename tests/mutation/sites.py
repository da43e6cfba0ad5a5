"""Where `libs.tee` refuses: every `raise` statement, and one function's returned errors; and mutants without them."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import libs.tee
from libs.errors import Code, MeshError

JUDGING, PARSING, CONVERTED = "judging", "parsing", "converted"
"""What a site raises: a refusal of what was read, one of what cannot be read, or an error that a caller converts."""

OUTSIDE = {
    "libs.tee.dstack": "asks the guest agent; judges no evidence",
    "libs.tee.dstack_custody": "judges a key's signature chain, not evidence; its own tests attack each check",
    "libs.tee.signer_recovery": "judges that chain's signatures, not evidence; its own tests attack each check",
    "libs.tee.archived": "reads records of appraisals; judges no evidence",
    "libs.tee.ear": "writes and reads results of appraisals; judges no evidence",
    "libs.tee.registers": "formulas; a value of another size is a mistake of the caller",
    "libs.tee.steps": "passes refusals on",
    "libs.tee.nvidia.collected": "reads what this guest collected itself; judges no evidence",
}
"""Modules in which nothing is to be taken away, and why."""

_RETURNING = {("libs.tee.tdx", "_refusal")}


@dataclass(frozen=True, slots=True)
class Site:
    """One statement that refuses. `statement` is its source without what it chains, and `count` tells twins apart."""

    module: str
    function: str
    statement: str
    count: int
    group: str
    returns: bool
    # The lines that it stands on, first and last.
    lines: tuple[int, int] = field(compare=False)

    @property
    def every_line(self) -> range:
        return range(self.lines[0], self.lines[1] + 1)

    @property
    def name(self) -> str:
        twin = f" [{self.count}]" if self.count else ""
        return f"{self.module.removeprefix('libs.tee.')}.{self.function}: {self.statement}{twin}"


@dataclass(frozen=True, slots=True)
class Source:
    """A module and its syntax."""

    module: ModuleType
    path: str
    tree: ast.Module

    def function(self, name: str) -> FunctionType:
        """Return the function of this qualified name, out of what decorates it."""
        found: Any = self.module
        for part in name.split("."):
            found = vars(found)[part]
        while not isinstance(found, FunctionType):
            found = found.fget if isinstance(found, property) else found.__func__
        function = inspect.unwrap(found)
        assert isinstance(function, FunctionType)
        return function

    @classmethod
    def of(cls, module: ModuleType) -> Source:
        path = str(module.__file__)
        return cls(module, path, ast.parse(Path(path).read_text()))


def sources() -> dict[str, Source]:
    """Every module of `libs.tee` in which checks stand, by name."""
    names = [found.name for found in pkgutil.walk_packages(libs.tee.__path__, "libs.tee.")]
    return {name: Source.of(importlib.import_module(name)) for name in names if name not in OUTSIDE}


def sites(every: Sequence[Source]) -> list[Site]:
    return [site for source in every for site in _sites(source)]


def without(source: Source, site: Site) -> AbstractContextManager[None]:
    """Run the mutant: in this process, the site's function does everything but refuse there."""
    return rewritten(source, site.function, _Without(site))


@contextmanager
def rewritten(source: Source, function_name: str, transformer: ast.NodeTransformer) -> Iterator[None]:
    """Run one function as it is after its syntax was transformed; the lines stay where they are."""
    tree = transformer.visit(deepcopy(source.tree))
    function = source.function(function_name)
    before = function.__code__
    compiled = compile(ast.fix_missing_locations(tree), source.path, "exec")
    function.__code__ = next(code for code in _codes(compiled) if code.co_qualname == function_name)
    try:
        yield
    finally:
        function.__code__ = before


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


class _Statements(ast.NodeVisitor):
    """Finds the statements that refuse, each with the qualified name of its function."""

    def __init__(self, module: str) -> None:
        self.found: list[tuple[str, ast.Raise | ast.Return]] = []
        self._module = module
        self._scope: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        if node.exc is not None:
            self.found.append((".".join(self._scope), node))

    def visit_Return(self, node: ast.Return) -> None:
        if (self._module, ".".join(self._scope)) in _RETURNING:
            self.found.append((".".join(self._scope), node))

    def _enter(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()


class _Without(ast.NodeTransformer):
    def __init__(self, site: Site) -> None:
        self._lines = site.lines

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return self._replaced(node)

    def visit_Return(self, node: ast.Return) -> ast.stmt:
        return self._replaced(node)

    def _replaced(self, node: ast.Raise | ast.Return) -> ast.stmt:
        if (node.lineno, node.end_lineno) != self._lines:
            return node
        return ast.copy_location(ast.Pass(), node)


def _sites(source: Source) -> Iterator[Site]:
    visitor = _Statements(source.module.__name__)
    visitor.visit(source.tree)
    seen: dict[tuple[str, str], int] = {}
    for function, node in visitor.found:
        raised = node.exc if isinstance(node, ast.Raise) else node.value
        statement = ast.unparse(raised) if raised is not None else ""
        count = seen[(function, statement)] = seen.get((function, statement), -1) + 1
        yield Site(
            module=source.module.__name__,
            function=function,
            statement=statement,
            count=count,
            group=_group(source.module, raised),
            returns=isinstance(node, ast.Return),
            lines=(node.lineno, node.end_lineno or node.lineno),
        )


def _group(module: ModuleType, raised: ast.expr | None) -> str:
    """What is raised by a name that is no error's, as an error kept from before is, judges."""
    named = raised.func if isinstance(raised, ast.Call) else raised
    name = named.id if isinstance(named, ast.Name) else ""
    error = getattr(module, name, getattr(builtins, name, None))
    if not isinstance(error, type) or not issubclass(error, Exception):
        return JUDGING
    if not issubclass(error, MeshError):
        return CONVERTED
    return PARSING if error.code is Code.INVALID_ARGUMENT else JUDGING
