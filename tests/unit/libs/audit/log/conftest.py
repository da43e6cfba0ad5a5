"""A small log, made once by the ledger's own writer; each test changes its own copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.audit.log.reading import Question, Reading, read_log
from tests.fakes.written_log import SMALL, FilesInMemory, WrittenLog, small_log


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a log that nothing is wrong with."""
    return small_log(tmp_path_factory.mktemp("sound") / "log").files()


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    """An empty log."""
    return WrittenLog(tmp_path / "log").create()


def read(files: dict[str, bytes], **asked: object) -> Reading:
    return read_log(FilesInMemory(files), Question(block_leaves=SMALL.block_leaves, **asked))  # type: ignore[arg-type]


def said(reading: Reading) -> str:
    """Return everything that is wrong, for a test to look for words in."""
    wrong = reading.findings.wrong
    return "\n".join(f"{each.status.name} {each.file}@{each.offset}: {each.what}" for each in wrong)
