"""What a row's test reads: its own text and all that it uses of its module, so that what it never names shows."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]


def text_of(test: str) -> str:
    """Return the text of a test, by its id below tests/, with the functions, fixtures and constants of its module that
    it uses, and the id itself, which holds its parameters.
    """
    path, _, function = test.partition("::")
    lines, places = _module(path)
    read: dict[str, str] = {}
    open_ends = [function.partition("[")[0]]
    while open_ends:
        name = open_ends.pop()
        if name in read or name not in places:
            continue
        place = places[name]
        first = min(each.lineno for each in (place, *getattr(place, "decorator_list", ())))
        read[name] = "\n".join(lines[first - 1 : place.end_lineno])
        open_ends += [each.id for each in ast.walk(place) if isinstance(each, ast.Name)]
        open_ends += [each.arg for each in ast.walk(place) if isinstance(each, ast.arg)]
    return "\n".join((test, *read.values()))


@cache
def _module(path: str) -> tuple[list[str], dict[str, ast.stmt]]:
    """Return a module's lines, and where each name of its own is."""
    text = (TESTS / path).read_text()
    places: dict[str, ast.stmt] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            places[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                places |= {each.id: statement for each in ast.walk(target) if isinstance(each, ast.Name)}
    return text.splitlines(), places
