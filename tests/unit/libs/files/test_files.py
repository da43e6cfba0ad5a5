from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from libs.files import draft_of, remove_drafts, write_durably


def test_a_file_is_replaced_whole_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    before = os.umask(0o077)
    try:
        write_durably(path, b"new", mode=0o644)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_secrets_are_the_owner_s_alone_by_default(tmp_path: Path) -> None:
    write_durably(tmp_path / "key", b"k")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "state").symlink_to(tmp_path / "other")
    write_durably(tmp_path / "state", b"new")
    assert (tmp_path / "other").read_bytes() == b"other"
    assert not (tmp_path / "state").is_symlink()


def test_a_failed_write_leaves_the_old_content_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(IsADirectoryError):
        write_durably(tmp_path / "state", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


LEFT = ".state.0123456789abcdef"
"""A draft of the file `state`."""


def test_a_draft_has_the_name_that_a_killed_writer_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    replace = os.replace

    def seen(source: Path, target: Path) -> None:
        names.append(source.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", seen)
    write_durably(tmp_path / "state", b"new")
    assert [draft_of(name) for name in names] == ["state"]


def test_drafts_of_the_owner_s_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    others = [
        "state",
        ".state",
        ".state.0123456789abcde",
        ".state.0123456789abcdef0",
        ".state.0123456789ABCDEF",
        "state.0123456789abcdef",
        ".other.0123456789abcdef",
        ".other.state.0123456789abcdef",
        ".state.old.0123456789abcdef",
    ]
    for name in (LEFT, *others):
        (tmp_path / name).write_bytes(b"half")
    remove_drafts(tmp_path, re.compile("state"))
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(others)


def test_what_is_no_plain_file_is_no_draft(tmp_path: Path) -> None:
    (tmp_path / "aim").write_bytes(b"kept")
    (tmp_path / LEFT).symlink_to(tmp_path / "aim")
    (tmp_path / ".state.fedcba9876543210").mkdir()
    remove_drafts(tmp_path, re.compile("state"))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_is_not_there_yet_has_no_drafts(tmp_path: Path) -> None:
    remove_drafts(tmp_path / "absent", re.compile("state"))
