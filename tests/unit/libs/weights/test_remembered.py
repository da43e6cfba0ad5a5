"""What was hashed is not read again, unless it may have changed.

Whether a file was read shows by what is remembered of it: here something that no reading gives.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from libs.weights import Remembered, measure
from libs.weights.remembered import FileState

UNREAD = b"\xee" * 32
READ = hashlib.sha256(b"weights").digest()


def in_an_hour() -> int:
    return time.time_ns() + 3600 * 10**9


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def kept(model: Path, tmp_path: Path) -> Path:
    """Where this boot remembers of the model what no reading gives."""
    path = tmp_path / "remembered"
    remembered = Remembered(path, "this boot", in_an_hour)
    remembered.add(state_of(model), UNREAD)
    remembered.keep()
    return path


def state_of(path: Path) -> FileState:
    return FileState.of(path.stat())


def change_file(path: Path, change: str) -> None:
    before = path.stat()
    if change == "content":
        # As long as before, and with its time of modification set back.
        path.write_bytes(b"WEIGHTS")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "times":
        os.utime(path, ns=(0, 0))
    elif change == "inode":
        copy = path.with_suffix(".copy")
        copy.write_bytes(b"weights")
        copy.replace(path)
    else:
        os.link(path, path.with_suffix(".link"))


async def _measured(model: Path, remembered: Remembered) -> bytes:
    (file,) = (await measure(model, remembered)).manifest.files
    return file.sha256


async def test_what_is_remembered_is_not_read(model: Path, kept: Path) -> None:
    assert await _measured(model, Remembered(kept, "this boot")) == UNREAD
    # It is remembered still.
    assert await _measured(model, Remembered(kept, "this boot")) == UNREAD


async def test_after_another_boot_everything_is_read(model: Path, kept: Path) -> None:
    assert await _measured(model, Remembered(kept, "another boot")) == READ


async def test_the_kernel_says_which_boot_this_is(model: Path, kept: Path) -> None:
    assert await _measured(model, Remembered(kept)) == READ


@pytest.mark.parametrize("change", ["content", "times", "inode", "links"])
async def test_a_file_that_may_have_changed_is_read(model: Path, kept: Path, change: str) -> None:
    change_file(model, change)
    found = await _measured(model, Remembered(kept, "this boot"))
    assert found == (hashlib.sha256(b"WEIGHTS").digest() if change == "content" else READ)


async def test_a_file_that_was_just_written_is_not_remembered(model: Path, tmp_path: Path) -> None:
    """A second write within the same tick would show in none of its times."""
    path = tmp_path / "remembered"
    await _measured(model, Remembered(path, "this boot"))
    assert Remembered(path, "this boot").digest(state_of(model)) is None
    await _measured(model, Remembered(path, "this boot", in_an_hour))
    assert Remembered(path, "this boot").digest(state_of(model)) == READ


async def test_what_is_not_there_any_more_is_forgotten(model: Path, kept: Path) -> None:
    before = state_of(model)
    change_file(model, "content")
    await _measured(model, Remembered(kept, "this boot", in_an_hour))
    assert Remembered(kept, "this boot").digest(before) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"boot_id":"this boot","sha256":[]}', b"\xff"])
async def test_what_cannot_be_read_is_nothing(model: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "remembered"
    path.write_bytes(content)
    assert await _measured(model, Remembered(path, "this boot")) == READ
