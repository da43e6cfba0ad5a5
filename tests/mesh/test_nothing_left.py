"""Of what was asked and answered nothing is left: not in what the mesh keeps, not in its logs, not in temporary files.

While it runs and after it stopped, whatever form it might have been written in, and however the request ended. What
a client keeps for itself (`teemesh chat --save`) is its own.
"""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mesh.conversations import Conversations
from tests.mesh.running import running_mesh, short_folder
from tests.mesh.traces import files_below, holders, pieces

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]


@dataclass(frozen=True, slots=True)
class Left:
    """A mesh that has answered, and has stopped."""

    folder: Path
    began: float
    texts: Mapping[str, str]
    """What every prompt begins with, and pieces of all answers."""
    while_it_ran: Mapping[str, set[str]]
    with_model: Mapping[str, set[str]]


def everywhere(folder: Path, began: float) -> Iterator[Path]:
    """All files of the mesh, and what may be others' and was written since it began."""
    yield from files_below(folder)
    for place in [*(Path(tempfile.gettempdir()).glob("teemesh*")), Path("/dev/shm")]:
        yield from files_below(place, began)


@pytest.fixture(scope="module")
def left() -> Iterator[Left]:
    began = time.time()
    with short_folder() as folder:
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        environment = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        with running_mesh(folder, environment=environment) as mesh:
            talk = Conversations(mesh)
            talk.over_https()
            talk.over_grpc()
            talk.encrypted()
            talk.refused()
            talk.left()
            talk.broken_off()
            assert len(talk.asked) > 30
            texts = {"a prompt": talk.mark} | {
                f"{name}, piece {number}": piece
                for name, said in talk.said.items()
                for number, piece in enumerate(pieces(said))
            }
            model = talk.model
            while_it_ran = holders(everywhere(folder, began), texts)
            with_model = holders(files_below(mesh.state), {"model": model})
        yield Left(folder, began, texts, while_it_ran, with_model)


def test_nothing_is_left_while_the_mesh_runs(left: Left) -> None:
    assert len(left.texts) > 40
    assert left.while_it_ran == {}


def test_nothing_is_left_when_the_mesh_has_stopped(left: Left) -> None:
    assert holders(everywhere(left.folder, left.began), left.texts) == {}


def test_the_search_goes_where_things_are_kept(left: Left) -> None:
    """The model's name is no secret: it stands in configuration, and in what the broker and the ledger store."""
    state = left.folder / "s"
    kept = [Path(path).relative_to(state).parts for path in left.with_model]
    assert {parts[0] for parts in kept} >= {"config", "state"}
    assert {parts[1] for parts in kept if parts[0] == "state"} >= {"broker", "ledger"}
    services = {path.stem for path in (state / "logs").glob("*.log")}
    assert services >= {"attestation", "broker", "kms", "ledger", "node", "registry", "router", "witness"}


@pytest.mark.parametrize("place", ["home", "tmp", "s/state/node", "s/logs"])
def test_the_search_finds_what_is_there(left: Left, place: str) -> None:
    name, text = next((name, text) for name, text in left.texts.items() if "piece" in name)
    odd = 'Žďár "said"\nso and nobody else does'
    written = {
        "raw": f"before {text} after".encode(),
        "json": json.dumps({"text": f"before {odd} after"}).encode(),
        "unescaped": json.dumps({"text": odd}, ensure_ascii=False).encode(),
        "hex": b"\x00" + f"before {text} after".encode().hex().encode(),
        "upper": text.encode().hex().upper().encode(),
        **{f"base64 {n}": base64.b64encode(b"~" * n + text.encode() + b"~~~") for n in range(3)},
        "urlsafe": base64.urlsafe_b64encode(b"~~~~~" + odd.encode() + b"~"),
        "json in base64": base64.b64encode(json.dumps({"a": odd}).encode()),
    }
    controls = {left.folder / place / f"control of {form}": content for form, content in written.items()}
    for path, content in controls.items():
        path.write_bytes(content)
    found = holders(everywhere(left.folder, left.began), {name: text, "odd": odd})
    for path in controls:
        path.unlink()
    assert found.keys() == {str(path) for path in controls}
