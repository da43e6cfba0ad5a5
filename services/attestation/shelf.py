"""It is responsible for collateral that outlives the process: one file per platform, under the digest of its content.

It lets a restarted service answer at once, and while the PCCS is away. What is read is checked like what is fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import structlog

from libs.errors import MeshError
from libs.files import remove_drafts, write_durably
from libs.tee.collateral import Collateral
from libs.tee.evidence import MAX_DOCUMENT_BYTES
from services.attestation.pccs import Ages, Platform, goes_back, verify_consistent

_FILE = re.compile(r"(platform|processor)\.([0-9a-f]{12})\.([0-9a-f]{64})")

log = structlog.get_logger()


class Shelf:
    """A folder of collateral. Its methods block on nothing but a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = asyncio.Lock()

    async def load(self, now: float) -> dict[Platform, Collateral]:
        """Return what is whole and still valid."""
        return await asyncio.to_thread(self._load, int(now))

    async def put(self, platform: Platform, collateral: Collateral) -> None:
        """Replace a platform's collateral. A disk that fails costs no more than the next restart's head start."""
        async with self._writing:
            try:
                await asyncio.to_thread(self._put, platform, collateral.encode())
            except OSError as error:
                log.error("collateral is not kept", fmspc=platform.fmspc, detail=str(error))

    def _load(self, now: int) -> dict[Platform, Collateral]:
        found: dict[Platform, Collateral] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(self._folder, _FILE)
        for path in sorted(self._folder.iterdir()):
            name = _FILE.fullmatch(path.name)
            if name is None:
                continue
            platform = Platform(name[2], name[1])
            try:
                with path.open("rb") as file:
                    data = file.read(MAX_DOCUMENT_BYTES)
                if hashlib.sha256(data).hexdigest() != name[3]:
                    raise ValueError("the file is not what its name says")
                collateral = Collateral.decode(data)
                verify_consistent(collateral, platform, now)
            except (OSError, ValueError, MeshError) as error:
                log.warning("kept collateral is passed over", file=path.name, detail=str(error))
                continue
            held = found.get(platform)
            if held is None or _supersedes(collateral, held):
                found[platform] = collateral
        return found

    def _put(self, platform: Platform, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        prefix = f"{platform.ca}.{platform.fmspc}."
        path = self._folder / f"{prefix}{hashlib.sha256(data).hexdigest()}"
        write_durably(path, data)
        for older in self._folder.glob(f"{prefix}*"):
            if older != path:
                older.unlink(missing_ok=True)


def _supersedes(found: Collateral, held: Collateral) -> bool:
    ages, held_ages = Ages.of(found), Ages.of(held)
    if goes_back(ages, held_ages) is not None:
        return False
    # Of two that are equally new, or not comparable, the order of the digests must not decide.
    return goes_back(held_ages, ages) is not None or found.expires_at() > held.expires_at()
