"""Real quotes and collateral as their manifest lists them; nothing of them is in the repository."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from libs.tee.collateral import Collateral

FOLDER = os.environ.get("TEEMESH_FIXTURES")
QUOTES = Path(FOLDER or "") / "quotes"


def manifest() -> dict[str, Any]:
    """What stands beside the files for programs; empty lists where there are none, so that tests can be collected."""
    if FOLDER is None:
        return {"files": [], "quotes": [], "accepted": [], "refused": [], "accepted_although_altered": []}
    document: dict[str, Any] = json.loads((QUOTES / "manifest.json").read_text())
    return document


def root() -> bytes:
    return (QUOTES / "dcap-qvl/intel_sgx_root_ca.der").read_bytes()


def collateral(name: str) -> Collateral:
    return Collateral.decode((QUOTES / name).read_bytes())


def quote(name: str) -> bytes:
    """The quote in a file, whatever it is wrapped in; not cut."""
    data = (QUOTES / name).read_bytes()
    if name.endswith(".hex"):
        return bytes.fromhex(data.decode().strip().removeprefix("0x"))
    if name.endswith(".json"):
        reply = json.loads(data)
        if "quote" in reply:
            return bytes.fromhex(reply["quote"])
        data = bytes.fromhex(reply["attestation"])
    if "attestation" in name:
        # SCALE: version, platform, then the quote after its two-byte compact length.
        return data[4 : 4 + (int.from_bytes(data[2:4], "little") >> 2)]
    return data
