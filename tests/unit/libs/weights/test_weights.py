"""Weights have one name: the digest of their manifest."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from libs.weights import WeightsChanged, WeightsMissing, measure, packaged_weights

PACKAGED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


async def digest_of(path: Path) -> bytes:
    return (await measure(path)).manifest.digest


async def test_one_file_is_named_by_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"abc")
    manifest = (
        b'{"files":[{"name":"model.gguf",'
        b'"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","size":3}]}'
    )
    assert await digest_of(path) == hashlib.sha256(manifest).digest()


async def test_an_engine_is_given_one_file_wherever_it_lies_and_else_the_folder(tmp_path: Path) -> None:
    """What comes encrypted is opened into a folder, and engines of one file load no folder."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.gguf").write_bytes(b"weights")
    assert (await measure(model / "model.gguf")).loaded == (await measure(model)).loaded == model / "model.gguf"
    (model / "config.json").write_bytes(b"{}")
    assert (await measure(model)).loaded == model


async def test_every_file_below_a_folder_counts_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one").write_bytes(b"1")
    before = await digest_of(tmp_path)
    (tmp_path / "part" / "one").rename(tmp_path / "part" / "two")
    moved = await digest_of(tmp_path)
    (tmp_path / "config.json").write_bytes(b"{}")
    assert len({before, moved, await digest_of(tmp_path)}) == 3


async def test_a_link_to_a_file_counts_as_the_file(tmp_path: Path) -> None:
    """As models lie in a cache of their hub's."""
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "blob").write_bytes(b"1")
    (model / "one").symlink_to(tmp_path / "blob")
    linked = await digest_of(model)
    (model / "one").unlink()
    (model / "one").write_bytes(b"1")
    assert await digest_of(model) == linked


async def test_what_an_engine_could_follow_and_nobody_hashes_is_refused(tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    model.mkdir()
    elsewhere.mkdir()
    (model / "one").write_bytes(b"1")
    (model / "more").symlink_to(elsewhere)
    with pytest.raises(WeightsMissing, match="more is neither"):
        await measure(model)
    (model / "more").unlink()
    os.mkfifo(model / "more")
    with pytest.raises(WeightsMissing, match="more is neither"):
        await measure(model)


async def test_the_packaged_model_is_the_expected_one() -> None:
    path = packaged_weights()
    (file,) = (await measure(path)).manifest.files
    assert (file.sha256.hex(), file.size) == (PACKAGED_SHA256, 98362432)


async def test_missing_and_empty_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing):
        await measure(tmp_path / "absent.gguf")
    with pytest.raises(WeightsMissing):
        await measure(tmp_path)


async def test_progress_ends_with_all_of_it(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(5 << 20))
    told: list[tuple[int, int]] = []
    await measure(tmp_path, progress=lambda done, of: told.append((done, of)))
    assert told == sorted(told)
    assert len(told) > 3
    assert told[-1] == (15 << 20, 15 << 20)


async def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(9 << 20))

    def write(done: int, of: int) -> None:
        with path.open("r+b") as file:
            file.write(b"\x01")

    with pytest.raises(WeightsChanged, match=r"model\.gguf changed"):
        await measure(path, progress=write)


async def test_who_gives_up_ends_the_reading(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(bytes(64 << 20))
    begun, given_up = threading.Event(), threading.Event()
    told: list[int] = []

    def hold(done: int, of: int) -> None:
        told.append(done)
        begun.set()
        given_up.wait()

    measuring = asyncio.create_task(measure(tmp_path, progress=hold))
    await asyncio.to_thread(begun.wait)
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    given_up.set()
    # Whoever measures next waits for nobody: the first one has one piece behind it and takes no more.
    assert (await measure(tmp_path)).manifest.files[0].size == 64 << 20
    assert len(told) == 1


async def test_what_is_still_the_same_is_told_from_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    measured = await measure(tmp_path)
    await measured.require_unchanged()
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(WeightsChanged, match="b has changed"):
        await measured.require_unchanged()


@pytest.mark.parametrize("place", ["root", "below"])
async def test_folders_that_were_swapped_and_swapped_back_are_told(tmp_path: Path, place: str) -> None:
    """An engine that was started meanwhile has read the other one, and every file is as it was."""
    model, other, aside = tmp_path / "model", tmp_path / "other", tmp_path / "aside"
    for folder in (model, other):
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "one").write_bytes(b"1")
    measured = await measure(model)
    await measured.require_unchanged()
    ours, theirs = (model, other) if place == "root" else (model / "part", other / "part")
    await asyncio.sleep(0.05)  # More than a tick of the filesystem's clock.
    for _ in range(2):
        ours.rename(aside)
        theirs.rename(ours)
        aside.rename(theirs)
    assert (await measure(model)).manifest == measured.manifest
    with pytest.raises(WeightsChanged, match="leads elsewhere"):
        await measured.require_unchanged()


@pytest.mark.parametrize("place", ["root", "below"])
async def test_a_link_that_led_elsewhere_for_a_while_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "blob").write_bytes(b"1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "one").write_bytes(b"1")
    (tmp_path / "model" / "two").symlink_to(tmp_path / "blob")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    measured = await measure(tmp_path / "link")
    await measured.require_unchanged()
    link = tmp_path / "link" if place == "root" else tmp_path / "model" / "two"
    before = link.readlink()
    await asyncio.sleep(0.05)
    for there in (tmp_path / "elsewhere", before):
        link.unlink()
        link.symlink_to(there)
    with pytest.raises(WeightsChanged, match="leads elsewhere"):
        await measured.require_unchanged()
