from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from libs.files import write_durably


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
