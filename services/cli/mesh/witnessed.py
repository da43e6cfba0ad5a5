"""It is responsible for what is witnessed of a running mesh's log: fetched as anyone may, and verified."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import aiohttp

from libs.errors import Code, MeshError
from libs.rpc.tls import load_client_context
from libs.transparency.checkpoint import verify
from libs.transparency.cosignature import CosignerKey, verify_cosignature
from libs.transparency.note import VerifierKey
from services.cli.mesh.reading import MeshReader

_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 1 << 20


class NotWitnessed(MeshError):
    """The ledger shows no witnessed checkpoint."""

    code = Code.UNAVAILABLE
    reason = "NOT_WITNESSED"


@dataclass(frozen=True, slots=True)
class WitnessedAccess:
    """Where the ledger shows it, and by whose keys it counts."""

    url: str
    ca_pem: bytes
    ledger_vkey: str
    witness_vkey: str


def read_witnessed_access(mesh: MeshReader) -> WitnessedAccess:
    """Raises `InputUnreadable`."""
    return WitnessedAccess(
        mesh.text("ledger_http"), mesh.file("mesh_ca"), mesh.text("ledger_vkey"), mesh.text("witness_vkey")
    )


async def ask_witnessed(access: WitnessedAccess) -> str:
    """Return how much of the log is witnessed, both signatures verified. Raises `NotWitnessed` and other refusals."""
    note = await _fetch(access)
    tree = verify(note, VerifierKey.parse(access.ledger_vkey))
    key = CosignerKey.parse(access.witness_vkey)
    age = time.time() - verify_cosignature(note, key)
    return f"witnessed: {tree.size} entries, by {key.name}, {age:.0f} s ago"


async def _fetch(access: WitnessedAccess) -> bytes:
    context = load_client_context(ca_pem=access.ca_pem)
    try:
        async with (
            asyncio.timeout(_TIMEOUT_SECONDS),
            aiohttp.ClientSession() as session,
            session.get(f"{access.url}/checkpoint.witnessed", ssl=context, allow_redirects=False) as response,
        ):
            body = await response.content.read(_MAX_BYTES)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise NotWitnessed(f"{access.url} does not answer: {type(error).__name__}") from error
    if response.status != 200:
        raise NotWitnessed(f"the ledger answers {response.status}: {body[:100].decode('utf-8', 'replace').strip()}")
    return body
