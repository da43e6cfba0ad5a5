"""A real nats-server: JetStream on disk, mutual TLS with the handshake first, one user per role."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.fakes.throwaway_ca import ThrowawayCa

_LISTENING = re.compile(rb"Listening for client connections on 127\.0\.0\.1:([0-9]+)")
_CONFIG = """
server_name: broker-1
host: 127.0.0.1
port: {port}
jetstream {{ store_dir: "{folder}/js", sync_interval: always, max_mem: 64MB, max_file: 1GB }}
tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{root}"
      verify_and_map: true, min_version: "1.3", handshake_first: true }}
accounts {{
  MESH {{ jetstream: enabled, users: [
    {{ user: "spiffe://mesh.test/router/one", permissions: {{
        publish: {{ allow: ["teemesh.ledger.>"] }}, subscribe: {{ allow: ["_INBOX_router.>"] }} }} }},
    {{ user: "spiffe://mesh.test/ledger/one", permissions: {{
        publish: {{ allow: ["teemesh.ledger.>", "$JS.API.>", "$JS.ACK.>"] }}
        subscribe: {{ allow: ["_INBOX_ledger.>"] }} }} }},
    {{ user: "spiffe://mesh.test/registry/one", permissions: {{
        publish: {{ allow: ["$KV.>", "$JS.API.>", "$JS.ACK.>"] }}
        subscribe: {{ allow: ["_INBOX_registry.>"] }} }} }} ] }}
}}
"""


class NatsBroker:
    """One broker that can be killed and started again on the same port with the same store."""

    def __init__(self, folder: Path, ca: ThrowawayCa) -> None:
        self._folder = folder
        self._files = ca.issue("broker.mesh.test", "broker")
        self._root = ca.root
        self._process: asyncio.subprocess.Process | None = None
        self.port = -1

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    async def start(self) -> None:
        config = self._folder / "nats.conf"
        config.write_text(
            _CONFIG.format(
                port=self.port,
                folder=self._folder,
                certificate=self._files.certificate,
                key=self._files.key,
                root=self._root,
            )
        )
        server = Path(sys.executable).parent / "nats-server"
        self._process = await asyncio.create_subprocess_exec(server, "-c", config, stderr=asyncio.subprocess.PIPE)
        assert self._process.stderr is not None
        lines = []
        async with asyncio.timeout(20):
            async for line in self._process.stderr:
                lines.append(line.decode())
                if (listening := _LISTENING.search(line)) is not None:
                    self.port = int(listening[1])
                if b"Server is ready" in line:
                    break
            else:
                raise AssertionError("nats-server did not start:\n" + "".join(lines))

    def forget(self) -> None:
        """Lose the store, while the broker is down."""
        shutil.rmtree(self._folder / "js")

    def keep_copy(self) -> None:
        """Copy the store, while the broker is down."""
        shutil.copytree(self._folder / "js", self._folder / "js-copy")

    def put_copy_back(self) -> None:
        """Put the older copy under the broker, while it is down."""
        self.forget()
        shutil.copytree(self._folder / "js-copy", self._folder / "js")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Answer nothing while the body runs, and close no connection."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # One thread of it takes the signal and then stops the others, which may answer until it has.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        await self._process.communicate()
        self._process = None


@asynccontextmanager
async def nats_broker(folder: Path, ca: ThrowawayCa) -> AsyncIterator[NatsBroker]:
    broker = NatsBroker(folder, ca)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()
