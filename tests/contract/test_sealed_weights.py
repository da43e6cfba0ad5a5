"""Encrypted weights: opened by a node of the right measurement, in memory, and by nobody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from teemesh.kms.v1 import kms_pb2

from libs.errors import MeshError
from libs.identity.sealed import ReceiverKey
from libs.policy.custody import verify_key_statement
from libs.weights import Manifest, Remembered, WeightsDiffer, WeightsMissing, measure
from libs.weights.age import WeightsNotOpened, seal
from libs.weights.place import WeightsWouldRest
from services.node.launch import EngineSettings, Launch
from services.node.opened_with import OpenedWith, WeightsKey
from services.node.opening import Release, Released, SealedSettings, open_weights, released_by_kms
from services.node.weights import weights_of
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.kms_callers import operator
from tests.fakes.running_kms import RunningKms, running_kms
from tests.faults.patience import until

KEY = "weights/model"
FILES = {"config.json": b"{}", "model.safetensors": os.urandom(3 << 20), "tokenizer/tokenizer.json": b"[]"}


def rule(mesh: JoinedMesh, **changes: Any) -> dict[str, Any]:
    mine = mesh.tds["node"].compose_hash.hex()
    return {"name": KEY, "roles": ["node"], "algorithm": "x25519", "compose_hashes": [mine], **changes}


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as found:
        enact(mesh, found, rule(mesh))
        yield found


def enact(mesh: JoinedMesh, running: RunningKms, *rules: dict[str, Any]) -> None:
    running.core.policy.accept(mesh.successor(running.core.policy.current, key_releases=list(rules)))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    folder = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
async def manifest(tmp_path: Path) -> Manifest:
    for name, content in FILES.items():
        path = tmp_path / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = (await measure(tmp_path / "plain")).manifest
    (tmp_path / "manifest.json").write_bytes(found.document)
    return found


@pytest.fixture
async def settings(running: RunningKms, manifest: Manifest, tmp_path: Path, in_memory: Path) -> EngineSettings:
    """A node's, of a model that operators sealed to the key that the KMS states."""
    epoch = await seal_to_newest(running, tmp_path / "plain", manifest, tmp_path / "sealed")
    shutil.rmtree(tmp_path / "plain")
    sealed = SealedSettings(tmp_path / "sealed", KEY, epoch)
    return EngineSettings(weights=in_memory / "model", manifest=tmp_path / "manifest.json", sealed=sealed)


async def seal_to_newest(running: RunningKms, plain: Path, manifest: Manifest, target: Path, key: str = KEY) -> int:
    """Return the epoch that they are sealed to."""
    async with operator(running) as ada:
        stated = await ada.GetPublicKey(kms_pb2.GetPublicKeyRequest(name=key), timeout=10)
    statement = verify_key_statement(stated.statement, stated.statement_signature, running.core.ca.spki)
    public = serialization.load_der_public_key(statement.public_key)
    assert isinstance(public, X25519PublicKey)
    await seal(plain, manifest, target, public)
    return statement.epoch


@asynccontextmanager
async def releasing(mesh: JoinedMesh, running: RunningKms, role: str = "node") -> AsyncIterator[Release]:
    receiver = ReceiverKey()
    claims: dict[str, Any] = {"hpke_key": receiver.public.hex()} | ({"models": []} if role == "node" else {})
    async with mesh.member(role, running.core, claims=claims) as member:
        yield released_by_kms(member.peer("kms", running.target), member.identity, receiver)


def launch_of(settings: EngineSettings) -> Launch:
    assert settings.weights is not None
    return Launch("e", settings.weights, (), (), {}, "", frozenset(), salted=False)


async def test_the_right_measurement_opens_them_in_memory_and_knows_them(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, manifest: Manifest, tmp_path: Path
) -> None:
    weights = await weights_of(settings, launch_of(settings), tmp_path)
    assert weights.digest == manifest.digest
    async with releasing(mesh, running) as release:
        measured = await weights.ready(release)
    assert measured.manifest == manifest
    assert settings.sealed is not None
    assert await weights.key() == WeightsKey(KEY, settings.sealed.epoch)
    assert [path.name for path in measured.path.parent.iterdir()] == ["model"]
    assert not _somewhere_below(tmp_path, FILES["model.safetensors"])


def _somewhere_below(folder: Path, content: bytes) -> list[Path]:
    """Look for any part of it."""
    parts = [content[at : at + 32] for at in range(0, len(content), 1 << 16)]
    return [path for path in folder.rglob("*") if path.is_file() and any(part in path.read_bytes() for part in parts)]


async def test_a_restarted_node_asks_for_no_key_and_measures_them_again(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, manifest: Manifest, tmp_path: Path
) -> None:
    async with releasing(mesh, running) as release:
        await (await weights_of(settings, launch_of(settings), tmp_path)).ready(release)

    async def nobody(sealed: SealedSettings) -> Any:
        raise AssertionError("the key was asked for")

    again = await weights_of(settings, launch_of(settings), tmp_path)
    assert (await again.ready(nobody)).manifest == manifest


async def test_a_restarted_node_names_the_key_that_they_were_opened_with_whatever_its_file_says_now(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, tmp_path: Path
) -> None:
    assert settings.sealed is not None
    async with releasing(mesh, running) as release:
        await (await weights_of(settings, launch_of(settings), tmp_path)).ready(release)
        renamed = replace(settings, sealed=replace(settings.sealed, key="weights/other", epoch=7))
        again = await weights_of(renamed, launch_of(renamed), tmp_path)
        await again.ready(release)
    assert await again.key() == WeightsKey(KEY, settings.sealed.epoch)


@pytest.mark.parametrize("key", [KEY, "weights/another"])
async def test_weights_that_are_sealed_anew_name_the_newest_key_where_the_newest_opened_them(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, manifest: Manifest, tmp_path: Path, key: str
) -> None:
    """Its memory was emptied, and its disk has what was written of the opening before."""
    assert settings.sealed is not None
    assert settings.weights is not None
    enact(mesh, running, rule(mesh), rule(mesh, name="weights/another"))
    async with releasing(mesh, running) as release:
        await (await weights_of(settings, launch_of(settings), tmp_path)).ready(release)
        plain, sealed = tmp_path / "once more", tmp_path / "anew"
        shutil.move(settings.weights, plain)
        async with operator(running) as ada:
            for epoch in (2, 3):
                await ada.RotateKey(kms_pb2.RotateKeyRequest(name=key, epoch=epoch), timeout=10)
        assert await seal_to_newest(running, plain, manifest, sealed, key) == 3
        newest = replace(settings, sealed=SealedSettings(sealed, key, 0))
        again = await weights_of(newest, launch_of(newest), tmp_path)
        await again.ready(release)
    assert await again.key() == WeightsKey(key, 3)


async def test_weights_of_which_nothing_was_written_down_name_no_key(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, manifest: Manifest, tmp_path: Path
) -> None:
    """Those that an earlier version opened, other weights than were written of, and such as came in the clear."""
    note = tmp_path / "weights-key.json"
    async with releasing(mesh, running) as release:
        weights = await weights_of(settings, launch_of(settings), tmp_path)
        await weights.ready(release)
        for written in (b"", b"{", b"[]", b'{"weights_sha256":7}', note.read_bytes().replace(b'"epoch":', b'"e":')):
            note.write_bytes(written)
            assert await weights.key() is None
        OpenedWith(note).note(WeightsKey(KEY, 1), bytes(32))
        assert await weights.key() is None
        note.unlink()
        assert await weights.key() is None
    plain = replace(settings, sealed=None)
    assert await (await weights_of(plain, launch_of(plain), tmp_path)).key() is None


@pytest.mark.parametrize("change", ["content", "more", "link", "empty"])
async def test_what_differs_where_they_are_opened_is_removed_and_opened_once_more(
    mesh: JoinedMesh,
    running: RunningKms,
    settings: EngineSettings,
    manifest: Manifest,
    tmp_path: Path,
    in_memory: Path,
    change: str,
) -> None:
    target = in_memory / "model"
    weights = await weights_of(settings, launch_of(settings), tmp_path)
    async with releasing(mesh, running) as release:
        await weights.ready(release)
        if change == "content":
            (target / "config.json").write_bytes(b"[]")
        elif change == "more":
            (target / "more").write_bytes(b"[]")
        elif change == "link":
            # What it leads to is another's, and stays.
            target.rename(in_memory / "elsewhere")
            (in_memory / "elsewhere" / "config.json").write_bytes(b"[]")
            target.symlink_to(in_memory / "elsewhere")
        else:
            shutil.rmtree(target)
            target.mkdir()
        assert (await weights.ready(release)).manifest == manifest
    assert os.listdir(in_memory / "elsewhere" if change == "link" else target)
    assert not target.is_symlink()


async def test_a_killed_nodes_wrong_draft_is_not_taken_over(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, manifest: Manifest, tmp_path: Path, in_memory: Path
) -> None:
    draft = in_memory / ".model.opening"
    draft.mkdir()
    (draft / "another.safetensors").write_bytes(b"of a manifest of before")
    weights = await weights_of(settings, launch_of(settings), tmp_path)
    async with releasing(mesh, running) as release:
        assert (await weights.ready(release)).manifest == manifest
    assert os.listdir(in_memory) == ["model"]


async def test_a_wrong_sealed_file_that_is_corrected_is_opened(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, manifest: Manifest, tmp_path: Path
) -> None:
    assert settings.sealed is not None
    file = settings.sealed.folder / "model.safetensors.age"
    right = file.read_bytes()
    shutil.copy(settings.sealed.folder / "config.json.age", file)
    weights = await weights_of(settings, launch_of(settings), tmp_path)
    async with releasing(mesh, running) as release:
        with pytest.raises(WeightsDiffer):
            await weights.ready(release)
        file.write_bytes(right)
        assert (await weights.ready(release)).manifest == manifest


async def test_a_new_manifest_has_its_weights_opened(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, manifest: Manifest, tmp_path: Path
) -> None:
    fewer = Manifest(manifest.files[:1])
    async with releasing(mesh, running) as release:
        await (await weights_of(settings, launch_of(settings), tmp_path)).ready(release)
        (tmp_path / "manifest.json").write_bytes(fewer.document)
        assert (await (await weights_of(settings, launch_of(settings), tmp_path)).ready(release)).manifest == fewer


async def test_who_is_cancelled_while_opening_leaves_nothing(tmp_path: Path, in_memory: Path) -> None:
    """Not even what threads have begun: there are more files than threads, so some would begin another."""
    key = X25519PrivateKey.generate()
    plain, sealed = tmp_path / "many", tmp_path / "many.sealed"
    plain.mkdir()
    for number in range(16 * (os.cpu_count() or 1)):
        (plain / f"{number}").write_bytes(bytes(4 << 20))
    manifest = (await measure(plain)).manifest
    await seal(plain, manifest, sealed, key.public_key())

    async def release(settings: SealedSettings) -> Released:
        return Released(key, 1)

    settings = SealedSettings(sealed, KEY, 1)
    opening = asyncio.create_task(
        open_weights(
            settings,
            manifest,
            in_memory / "model",
            release,
            lambda: Remembered(None),
            OpenedWith(tmp_path / "weights-key.json"),
        )
    )

    async def is_begun() -> bool:
        return _files_below(in_memory) > 0

    async with asyncio.timeout(30):
        await until(is_begun, poll_seconds=0)
    # Twice: who is told again while it waits waits all the same.
    for _ in range(2):
        opening.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert os.listdir(in_memory) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("weights")]


def _files_below(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


@pytest.mark.parametrize("role", ["node", "router"])
async def test_another_measurement_gets_no_key_and_leaves_nothing(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, tmp_path: Path, in_memory: Path, role: str
) -> None:
    others = mesh.tds["agent"].compose_hash.hex()
    if role == "node":
        enact(mesh, running, rule(mesh, compose_hashes=[others]))
    weights = await weights_of(settings, launch_of(settings), tmp_path)
    async with releasing(mesh, running, role) as release:
        with pytest.raises(MeshError) as refused:
            await weights.ready(release)
    assert refused.value.reason == "KEY_NOT_ALLOWED"
    assert os.listdir(in_memory) == []


@pytest.mark.parametrize(
    ("damage", "refusal"),
    [("bit", WeightsNotOpened), ("cut", WeightsNotOpened), ("gone", WeightsMissing), ("another", WeightsDiffer)],
)
async def test_what_the_host_did_to_the_files_is_found(
    mesh: JoinedMesh,
    running: RunningKms,
    settings: EngineSettings,
    tmp_path: Path,
    in_memory: Path,
    damage: str,
    refusal: type[MeshError],
) -> None:
    assert settings.sealed is not None
    folder = settings.sealed.folder
    file = folder / "model.safetensors.age"
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[1 << 20] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[: 1 << 20])
    elif damage == "gone":
        file.unlink()
    else:
        # Whoever knows the public key can seal: here another of the files.
        shutil.copy(folder / "config.json.age", file)
    weights = await weights_of(settings, launch_of(settings), tmp_path)
    async with releasing(mesh, running) as release:
        with pytest.raises(refusal):
            await weights.ready(release)
    assert os.listdir(in_memory) == []


async def test_another_key_does_not_open_them(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings, tmp_path: Path
) -> None:
    assert settings.sealed is not None
    async with operator(running) as ada:
        await ada.RotateKey(kms_pb2.RotateKeyRequest(name=KEY, epoch=2), timeout=10)
    wrong = EngineSettings(
        weights=settings.weights, manifest=settings.manifest, sealed=SealedSettings(settings.sealed.folder, KEY, 2)
    )
    async with releasing(mesh, running) as release:
        with pytest.raises(WeightsNotOpened):
            await (await weights_of(wrong, launch_of(wrong), tmp_path)).ready(release)
        # The epoch that they were sealed under is released still.
        await (await weights_of(settings, launch_of(settings), tmp_path)).ready(release)


async def test_they_are_not_opened_where_a_disk_would_have_them(
    mesh: JoinedMesh, running: RunningKms, settings: EngineSettings
) -> None:
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as disk:
        wrong = EngineSettings(weights=Path(disk) / "model", manifest=settings.manifest, sealed=settings.sealed)
        async with releasing(mesh, running) as release:
            with pytest.raises(WeightsWouldRest):
                await (await weights_of(wrong, launch_of(wrong), Path(disk))).ready(release)
        assert os.listdir(disk) == []


def test_half_a_configuration_is_refused(tmp_path: Path) -> None:
    sealed = SealedSettings(tmp_path, KEY, 1)
    for weights, manifest in ((tmp_path, None), (None, tmp_path), (None, None)):
        with pytest.raises(ValueError, match=r"engine\.sealed needs"):
            EngineSettings(sealed=sealed, weights=weights, manifest=manifest)
