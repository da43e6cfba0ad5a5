"""A witness in this process: its own listener, certificate, keys and book, asked as any witness is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from libs.transparency.cosignature import CosignerKey
from libs.transparency.note import VerifierKey
from services.ledger.config import WitnessSettings
from services.witness.config import Config, LogSettings
from services.witness.cosigning import Cosigning
from services.witness.listener import Submissions, serving_witness
from services.witness.opening import opened
from tests.fakes.pki import ThrowawayCa


@dataclass(frozen=True, slots=True)
class ServedWitness:
    """What a ledger is told of it, and what it decides by."""

    settings: WitnessSettings
    cosigning: Cosigning

    @property
    def key(self) -> CosignerKey:
        return self.settings.key


@asynccontextmanager
async def served_witness(
    folder: Path, verifier_keys: Sequence[VerifierKey], name: str = "witness.example/w1"
) -> AsyncIterator[ServedWitness]:
    """Serve one while the body runs. It looks at the log that all the keys name."""
    _write_certificate(folder)
    log = LogSettings(verifier_keys[0].name, tuple(each.text() for each in verifier_keys))
    config = Config(name, "127.0.0.1:0", folder / "tls.pem", folder / "tls.key", folder / "state", (log,))
    with opened(config) as cosigning, ThreadPoolExecutor(1) as thread:
        async with serving_witness(config, Submissions(cosigning, thread)) as port:
            settings = WitnessSettings(f"https://127.0.0.1:{port}", _verifier_key(folder), folder / "ca.pem")
            yield ServedWitness(settings, cosigning)


def _write_certificate(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    authority = ThrowawayCa()
    key, certificate = authority.leaf(None, "localhost", ip="127.0.0.1")
    for file, data in (("ca.pem", authority.pem), ("tls.pem", certificate), ("tls.key", key)):
        (folder / file).write_bytes(data)


def _verifier_key(folder: Path) -> str:
    return (folder / "state" / "verifier-keys").read_text().splitlines()[0]
