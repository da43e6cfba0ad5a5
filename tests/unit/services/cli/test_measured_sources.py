from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.local.measured_sources import source_digest
from services.cli.mesh.roster import SERVICES, SOURCE_ROOT


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the sources of two services."""
    ignore: Callable[..., set[str]] = shutil.ignore_patterns("__pycache__")
    for name in ("libs", "services/kms", "services/node"):
        shutil.copytree(SOURCE_ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(SOURCE_ROOT / "services" / "__init__.py", tmp_path / "services" / "__init__.py")
    return tmp_path


def test_the_same_sources_give_the_same_digest_anywhere(sources: Path) -> None:
    (sources / "libs" / "__pycache__").mkdir()
    (sources / "libs" / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert source_digest("kms", sources) == source_digest("kms")


def test_each_service_is_measured_differently() -> None:
    assert len({source_digest(service) for service in SERVICES}) == len(SERVICES)


def test_a_changed_line_changes_who_runs_it_and_nobody_else(sources: Path) -> None:
    kms, node = source_digest("kms", sources), source_digest("node", sources)
    with (sources / "services" / "kms" / "__init__.py").open("a") as file:
        file.write("\n")
    assert source_digest("kms", sources) != kms
    assert source_digest("node", sources) == node


def test_a_changed_lib_changes_everyone(sources: Path) -> None:
    before = source_digest("kms", sources), source_digest("node", sources)
    (sources / "libs" / "errors" / "new.py").write_text("")
    after = source_digest("kms", sources), source_digest("node", sources)
    assert all(one != other for one, other in zip(before, after, strict=True))
