from __future__ import annotations

from pathlib import Path

import pytest

from libs.errors import MeshError
from services.cli.kms_keys import read_variables


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
