from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from libs.config import ConfigInvalid, load


@dataclass(frozen=True, slots=True)
class Engine:
    kind: Literal["embedded", "vllm"]
    arguments: tuple[str, ...] = ()
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    listen: str
    drain_seconds: float
    engine: Engine
    workers: int = 1
    quiet: bool = False
    hosts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError("workers must be at least 1")


VALID = 'listen = "127.0.0.1:0"\ndrain_seconds = 3\n[engine]\nkind = "vllm"\n'


def _load(folder: Path, text: str) -> Settings:
    path = folder / "node.toml"
    path.write_text(text)
    return load(path, Settings)


def test_values_come_typed_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = _load(tmp_path, VALID + 'arguments = ["--a", "--b"]\nweights = "w/model.gguf"\n[hosts]\none = 1\n')
    assert settings == Settings(
        listen="127.0.0.1:0",
        drain_seconds=3.0,
        engine=Engine(kind="vllm", arguments=("--a", "--b"), weights=tmp_path / "w/model.gguf"),
        hosts={"one": 1},
    )


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    assert _load(tmp_path, VALID + 'weights = "/models/m"\n').engine.weights == Path("/models/m")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (VALID + "color = 1\n", "engine.color: unknown key"),
        ("speed = 1\n" + VALID, "speed: unknown key"),
        (VALID.replace("drain_seconds = 3\n", ""), "drain_seconds: missing"),
        (VALID.replace('kind = "vllm"\n', ""), "engine.kind: missing"),
        (VALID.replace('"vllm"', '"other"'), "engine.kind: must be one of 'embedded', 'vllm'"),
        ("workers = true\n" + VALID, "workers: must be an integer"),
        ("workers = 1.5\n" + VALID, "workers: must be an integer"),
        ('quiet = "yes"\n' + VALID, "quiet: must be a boolean"),
        ("engine = 1\n" + VALID.partition("[")[0], "engine: must be a table"),
        (VALID + "arguments = [1]\n", "engine.arguments[0]: must be a string"),
        (VALID + '[hosts]\none = "1"\n', "hosts.one: must be an integer"),
        ("workers = 0\n" + VALID, "the file: workers must be at least 1"),
        ("not toml", "not TOML: "),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        _load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'node.toml'}: {complaint}")
    assert "\n" not in str(caught.value)
    assert caught.value.reason == "CONFIG_INVALID"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"absent\.toml: cannot be read: No such file"):
        load(tmp_path / "absent.toml", Settings)
