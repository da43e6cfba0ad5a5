"""A node serves with the files that it measured, and names the one that is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from libs.aci.endpoints import CHAT
from libs.policy.engine_server import SOCKET, WEIGHTS
from libs.weights import ManifestMalformed, WeightsDiffer, WeightsMissing, measure
from services.node.channel import EngineUnavailable
from services.node.engine import SupervisedEngine, open_engine
from services.node.launch import EngineSettings, Launch
from services.node.weights import measured_weights

MODEL = "m"
PATIENCE_SECONDS = 30.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model-00001-of-00002.safetensors").write_bytes(os.urandom(5 << 20))
    (folder / "model-00002-of-00002.safetensors").write_bytes(os.urandom(1 << 20))
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def launch(model: Path) -> Launch:
    return Launch(
        name="an engine",
        weights=model,
        command=(
            *(sys.executable, "-m", "tests.fakes.salted_engine"),
            *("--model", WEIGHTS, "--salted", CHAT.path, "--uds", SOCKET),
        ),
        arguments=(),
        environment={},
        key_variable="TEST_ENGINE_KEY",
        endpoints=frozenset({CHAT}),
        salted=True,
    )


async def _manifest(model: Path, folder: Path) -> EngineSettings:
    path = folder / "manifest"
    path.write_bytes((await measure(model)).manifest.document + b"\n")
    return EngineSettings(model=MODEL, manifest=path)


async def test_the_files_of_the_manifest_are_measured(model: Path, launch: Launch, tmp_path: Path) -> None:
    settings = await _manifest(model, tmp_path)
    measured = await measured_weights(settings, launch, tmp_path)
    assert measured.manifest == (await measure(model)).manifest


async def test_one_flipped_bit_is_refused_and_its_file_named(model: Path, launch: Launch, tmp_path: Path) -> None:
    settings = await _manifest(model, tmp_path)
    wrong = model / "model-00001-of-00002.safetensors"
    content = bytearray(wrong.read_bytes())
    content[3 << 20] ^= 1
    wrong.write_bytes(content)
    with pytest.raises(WeightsDiffer, match=r"manifest: model-00001-of-00002\.safetensors has SHA-256 \w+ and"):
        await measured_weights(settings, launch, tmp_path)


async def test_a_bit_flipped_behind_what_is_remembered_is_refused(model: Path, launch: Launch, tmp_path: Path) -> None:
    """Whoever sets the times back that can be set back changes the one that cannot."""
    settings = await _manifest(model, tmp_path)
    await measured_weights(settings, launch, tmp_path)
    wrong = model / "tokenizer" / "tokenizer.json"
    before = wrong.stat()
    wrong.write_bytes(b"[]")
    os.utime(wrong, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WeightsDiffer, match=r"tokenizer/tokenizer\.json"):
        await measured_weights(settings, launch, tmp_path)


async def test_a_manifest_that_cannot_be_read_is_no_reason_to_serve(
    model: Path, launch: Launch, tmp_path: Path
) -> None:
    settings = EngineSettings(model=MODEL, manifest=tmp_path / "absent")
    with pytest.raises(WeightsMissing):
        await measured_weights(settings, launch, tmp_path)
    (tmp_path / "absent").write_bytes(b"{}")
    with pytest.raises(ManifestMalformed):
        await measured_weights(settings, launch, tmp_path)


@pytest_asyncio.fixture
async def engine(launch: Launch, tmp_path: Path) -> AsyncIterator[SupervisedEngine]:
    async with open_engine(EngineSettings(model=MODEL), launch, await measure(launch.weights), tmp_path) as running:
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)
        yield running


@pytest.mark.parametrize("change", ["content", "more", "gone"])
async def test_an_engine_that_starts_again_on_other_files_does_not_serve(
    engine: SupervisedEngine, model: Path, change: str
) -> None:
    """It reads them at every start, and only the first time were they hashed just before."""
    if change == "content":
        (model / "model-00002-of-00002.safetensors").write_bytes(os.urandom(1 << 20))
    elif change == "more":
        (model / "tokenizer" / "added_tokens.json").write_bytes(b"{}")
    else:
        (model / "tokenizer" / "tokenizer.json").unlink()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await asyncio.wait_for(engine.until_found_unfit(), PATIENCE_SECONDS)
    assert not engine.ready
    with pytest.raises(EngineUnavailable):
        async with engine.post(CHAT, b"{}", 1.0):
            pass
