"""Responsible for the cost of measuring a model's files, beside hashing the same ones on all cores and no more."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from libs import weights
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Limit, side_by_side

_FILES = 8
_FILE_BYTES = 128 << 20


def bare(files: Sequence[Path]) -> Action:
    def digest(path: Path) -> None:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    def all_of_them() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(digest, files))

    async def act() -> None:
        await asyncio.to_thread(all_of_them)

    return act


def measuring(folder: Path, remembered: Path | None = None) -> Action:
    async def act() -> None:
        # Written just before, so it would count as changing still.
        known = weights.Remembered(remembered, clock_ns=lambda: 1 << 62)
        await weights.measure(folder, known)

    return act


async def measure(folder: Path, *, seconds: float) -> Section:
    model = folder / "model"
    model.mkdir()
    files = [model / f"model-{number:05}.safetensors" for number in range(_FILES)]
    for file in files:
        await asyncio.to_thread(file.write_bytes, os.urandom(_FILE_BYTES))
    actions = [bare(files), measuring(model), measuring(model, folder / "remembered")]
    hashed, measured, remembered = await side_by_side(actions, Limit(count=10, seconds=seconds, in_a_row=1))
    size = _FILES * _FILE_BYTES
    return Section(
        "weights",
        "SHA-256 of the same files, on all cores",
        "as named",
        [Row("measured", hashed, measured), Row("measured again in one boot", hashed, remembered)],
        [
            f"{_FILES} files of {_FILE_BYTES >> 20} MiB, in the page cache; "
            f"{size / hashed.p50 / 1e9:.2f} GB/s bare, {size / measured.p50 / 1e9:.2f} GB/s measured"
        ],
    )
