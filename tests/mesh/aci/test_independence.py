"""What makes the reading here a second one: it knows the product by its wire alone."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SET_UP_BY_OPERATORS = {"stage.py"}
"""Operators use the product's own tools; who verifies uses nothing of it."""


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_only_the_operators_part_uses_the_products_code() -> None:
    users = {
        path.name
        for path in FOLDER.glob("*.py")
        if any(name.partition(".")[0] in ("libs", "services", "teemesh", "gen") for name in imported(path))
    }
    assert users == SET_UP_BY_OPERATORS


def test_the_reader_rests_on_nothing_but_the_standard_library_and_cryptography() -> None:
    allowed = {*sys.stdlib_module_names, "cryptography"}
    for name in ("reader.py", "quote.py", "wire.py", "sealing.py"):
        modules = imported(FOLDER / name) - {"tests.mesh.aci"}
        assert {module.partition(".")[0] for module in modules} <= allowed
