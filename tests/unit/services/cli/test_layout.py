from __future__ import annotations

import stat
from pathlib import Path

import pytest

from services.cli.mesh.layout import Layout, StatePathTooLong, StateUnusable


def test_the_state_folder_is_its_owners_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    assert stat.S_IMODE(layout.root.stat().st_mode) == 0o700
    assert layout.exists
    layout.prepare()


def test_a_path_too_long_for_sockets_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    layout = Layout(tmp_path / ("x" * 100))
    with pytest.raises(StatePathTooLong) as refusal:
        layout.prepare()
    assert refusal.value.reason == "STATE_PATH_TOO_LONG"
    assert not layout.root.exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(StateUnusable):
        Layout(tmp_path).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(StateUnusable, match="cannot make"):
        Layout(tmp_path / "f" / "s").prepare()
