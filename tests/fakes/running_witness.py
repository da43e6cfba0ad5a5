"""A witness as a process of its own, with its own certificate, keys and memory; it may be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import tomli_w

from libs.process import tethered
from libs.process.readiness import listening
from libs.transparency.cosignature import CosignerKey
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.pki import ThrowawayCa
from tests.fakes.ports import HOST, free_port

_ROOT = Path(__file__).parents[2]


class RunningWitness:
    """One witness in a folder that is short enough for a socket's path."""

    def __init__(self, folder: Path, logs: Sequence[dict[str, Any]], name: str = "witness.example/w1") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca = folder / "ca.pem"
        authority = ThrowawayCa()
        key, certificate = authority.leaf(None, "localhost", ip="127.0.0.1")
        for path, data in ((self.ca, authority.pem), (folder / "tls.pem", certificate), (folder / "tls.key", key)):
            path.write_bytes(data)
        listen = f"{HOST}:{free_port()}"
        self.url = f"https://{listen}"
        self.state = folder / "state"
        config = {
            "name": name,
            "listen": listen,
            "certificate": "tls.pem",
            "private_key": "tls.key",
            "state_dir": "state",
            "logs": list(logs),
        }
        (folder / "witness.toml").write_text(tomli_w.dumps(config))
        self._process: asyncio.subprocess.Process | None = None

    @property
    def keys(self) -> list[CosignerKey]:
        """Ed25519 first."""
        return [CosignerKey.parse(text) for text in (self.state / "verifier-keys").read_text().splitlines()]

    @property
    def settings(self) -> dict[str, Any]:
        """How a ledger is told of it."""
        return {"url": self.url, "verifier_key": self.keys[0].text(), "ca": str(self.ca)}

    async def start(self) -> None:
        notify = self._folder / "ready"
        environment = {**os.environ, "NOTIFY_SOCKET": str(notify)}
        with listening(notify) as readiness, (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tethered([sys.executable, "-m", "services.witness", str(self._folder / "witness.toml")]),
                cwd=_ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
            async with asyncio.timeout(60):
                await readiness.until_ready()

    async def kill(self, number: int = signal.SIGKILL) -> int:
        """End it and return its exit status."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        async with asyncio.timeout(60):
            return await process.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RunningWitness]:
        await self.start()
        try:
            yield self
        finally:
            await self.kill()


def attested_witness(mesh: JoinedMesh, origin: str) -> RunningWitness:
    """One that was told operators and seed policy, and no key of the log's."""
    seed = mesh.folder / "witness-seed.json"
    seed.write_bytes(mesh.seed)
    attested = {
        "trust_domain": TRUST_DOMAIN,
        "operator_keys": [key.public_key().public_bytes_raw().hex() for key in mesh.operators],
        "operator_threshold": 2,
        "seed_policy": str(seed),
    }
    return RunningWitness(mesh.folder / "w", [{"origin": origin, "attested": attested}])
