from __future__ import annotations

from pathlib import Path

import pytest

from libs.errors import MeshError
from services.cli.__main__ import main
from services.cli.kms.keys import read_variables


def test_variables_are_lines_of_name_and_value(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# secrets\nTOKEN=a=b \n\nEMPTY=\n")
    assert read_variables(path) == {"TOKEN": "a=b ", "EMPTY": ""}


@pytest.mark.parametrize("text", ["TOKEN\n", "A=1\nA=2\n", "A=1\n \nnonsense\n"])
def test_other_lines_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "env"
    path.write_text(text)
    with pytest.raises(MeshError) as error:
        read_variables(path)
    assert error.value.reason == "INPUT_UNREADABLE"


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "env"
    value = "1\u2028B=2\u0085\x0b\x0c\x1cC=3\rD=4"
    path.write_bytes(f"A={value}\r\nE=5\r\r\nF=6".encode())
    assert read_variables(path) == {"A": value, "E": "5\r", "F": "6"}


@pytest.mark.parametrize("epoch", ["-1", "0", "4294967296", "99999999999", "one", "1_0", "9" * 5000])
@pytest.mark.parametrize("command", ["public-key", "rotate"])
def test_a_number_that_is_no_epoch_is_refused(capsys: pytest.CaptureFixture[str], command: str, epoch: str) -> None:
    with pytest.raises(SystemExit):
        main(["kms", command, "models/a", f"--epoch={epoch}"])
    assert "from 1 to 4294967295" in capsys.readouterr().err


@pytest.mark.parametrize("epoch", [["--epoch=1"], ["--epoch=4294967295"], []])
@pytest.mark.parametrize("command", ["public-key", "rotate"])
def test_epochs_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, epoch: list[str]
) -> None:
    assert main(["kms", command, "models/a", "--state", str(tmp_path), *epoch]) == 1
    assert "INPUT_UNREADABLE" in capsys.readouterr().err  # There is no mesh to ask.
