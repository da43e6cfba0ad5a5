"""What the shipped configuration of each service names, its measured app-compose gives it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from services.cli.local.config import TEMPLATES as CONFIGS
from services.cli.policy.composes import TEMPLATES

FILES = "/etc/teemesh"
NAMES = sorted(path.name.removesuffix(".app-compose.json") for path in TEMPLATES.glob("*.app-compose.json"))
_PATH = re.compile(r'"(/[^"]+)"')
_SCRIPT = re.compile(r"      - \|\n((?:        .*\n)+)")
_VOLUME = re.compile(r"      - [\w./-]+:(/[\w./-]+)(?::ro)?\n")


def services_of(name: str) -> tuple[str, str]:
    """The parts of a template: the service that writes the files, and the one that reads them."""
    text = json.loads((TEMPLATES / f"{name}.app-compose.json").read_bytes())["docker_compose_file"]
    role = re.escape(name.removesuffix("-embedded"))
    files, service = re.split(rf"^  {role}:\n", text, maxsplit=1, flags=re.MULTILINE)
    return files, service


def config_of(name: str) -> str:
    return (CONFIGS / f"{name.removesuffix('-embedded')}.toml").read_text()


def written(name: str, given: dict[str, str], folder: Path) -> dict[str, str]:
    """Run what a template has its first service run, in folders of this machine."""
    (script,) = _SCRIPT.findall(services_of(name)[0])
    (folder / "etc").mkdir()
    (folder / "given").write_text(json.dumps(given))
    here = (
        textwrap.dedent(script).replace(FILES, str(folder / "etc")).replace("/run/user-config", str(folder / "given"))
    )
    subprocess.run([sys.executable, "-I", "-c", here], check=True, timeout=60)
    return {path.name: path.read_text() for path in (folder / "etc").iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_configuration_names_is_written_if_it_is_given(name: str, tmp_path: Path) -> None:
    named = {path.removeprefix(f"{FILES}/") for path in _PATH.findall(config_of(name)) if path.startswith(f"{FILES}/")}
    own = f"{name.removesuffix('-embedded')}.toml"
    given = {each: f"text of {each}" for each in (own, "policy.json", *named)}
    assert "policy.json" in named
    assert written(name, given | {"other": "a", "../other": "b"}, tmp_path) == given


@pytest.mark.parametrize("name", NAMES)
def test_what_was_always_given_is_enough(name: str, tmp_path: Path) -> None:
    own = f"{name.removesuffix('-embedded')}.toml"
    given = {own: "a", "policy.json": "b"}
    assert written(name, given, tmp_path) == given


@pytest.mark.parametrize("name", [name for name in NAMES if name != "node-embedded"])
def test_every_path_that_a_configuration_names_is_there(name: str) -> None:
    """The embedded engine's own weights come with its package."""
    _, service = services_of(name)
    there = {*_VOLUME.findall(service), *(("/dev/shm",) if "\n    shm_size: " in service else ())}
    assert {FILES, "/var/run/dstack.sock", "/var/lib/teemesh"} <= there
    for path in _PATH.findall(config_of(name)):
        assert any(path == each or path.startswith(f"{each}/") for each in there), path
