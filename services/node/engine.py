"""It is responsible for the engine's life: started as a child process, ready once it has really answered, killed when
it hangs, restarted when it ends, unheard once it serves, and counted while it works.

It relies on the engine to speak OpenAI's HTTP API on a unix socket; the socket's folder and the key, new at every start
of the node, keep every other process away from it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from libs.aci.endpoints import DEFINED, Endpoint
from libs.process import Exit, Program, Supervisor, supervised
from libs.weights import MeasuredWeights, WeightsChanged, WeightsMissing
from services.node.calling import Calling
from services.node.channel import Answer, EngineChannel, EngineTooSlow, EngineUnavailable, SaltIgnored
from services.node.environment import inherited
from services.node.launch import EngineSettings, Launch
from services.node.liveness import until_hanging
from services.node.proving import COUNTING, KeyIgnored, PromptsShared, require_kept_apart, require_key_wanted
from services.node.readings import Readings
from services.node.requests_fault import RequestsFault

_PROBE_PAUSE_SECONDS = 0.1
_STOP_SECONDS = 5.0
_READ_SECONDS = 2.0
_READS = 3
"""How often at least what the engine says of itself is read within the time that it may be silent."""
_OOM_SCORE_ADJ = 500
"""Where memory has run out the kernel ends the engine first: the node says what became of its requests."""
_LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel's limit is 107."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Sequences are counted by the node, through which every one comes, so they are the same for every engine."""

    running: int
    waiting: int
    capacity: int
    kv_cache_permille: int | None = None
    """How much of its key-value cache the engine says is in use; None when it does not say."""


class Engine(Protocol):
    """What serving needs of an engine."""

    @property
    def ready(self) -> bool: ...

    @property
    def endpoints(self) -> Collection[Endpoint]:
        """Where it is asked."""

    @property
    def lacks(self) -> Collection[str]:
        """See `Launch.lacks`."""

    @property
    def salted(self) -> bool:
        """True when requests need a cache salt."""

    @property
    def calling(self) -> Calling | None:
        """The help that it needs to call a tool that is demanded; None where it needs none."""

    @property
    def requests_faults(self) -> Collection[RequestsFault]:
        """See `Launch.requests_faults`."""

    @property
    def load(self) -> EngineLoad: ...

    def post(
        self, endpoint: Endpoint, body: bytes, timeout_seconds: float, sequences: int = 1
    ) -> AbstractAsyncContextManager[Answer]:
        """Send one request, which is so many sequences. Raises `EngineUnavailable` or `EngineTooSlow`; leaving early
        ends the generation."""

    async def until_ready(self) -> None: ...


class SupervisedEngine:
    """An engine that is a child of this process."""

    def __init__(
        self,
        settings: EngineSettings,
        launch: Launch,
        weights: MeasuredWeights,
        channel: EngineChannel,
        socket: Path,
        api_key: str,
    ) -> None:
        self._settings = settings
        self._launch = launch
        self._weights = weights
        self._channel = channel
        self._socket = socket
        self._program = Program(
            name="engine",
            argv=tuple(launch.argv(weights.loaded, socket)),
            environment={**inherited(), **launch.environment, launch.key_variable: api_key},
            hushable=True,
            grace_seconds=_STOP_SECONDS,
            memory_bytes=settings.memory_bytes,
            oom_score_adj=_OOM_SCORE_ADJ,
        )
        self._supervisor: Supervisor | None = None
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._away = asyncio.Event()
        self._away.set()
        self._unfit = asyncio.Event()
        self._sequences = 0
        self._readings = Readings(channel, launch.kv_cache_gauge, launch.work_metrics)

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def endpoints(self) -> Collection[Endpoint]:
        return self._launch.endpoints

    @property
    def lacks(self) -> Collection[str]:
        return self._launch.lacks

    @property
    def salted(self) -> bool:
        return self._launch.salted

    @property
    def calling(self) -> Calling | None:
        return self._launch.calling

    @property
    def requests_faults(self) -> Collection[RequestsFault]:
        return self._launch.requests_faults

    @property
    def load(self) -> EngineLoad:
        capacity = self._settings.parallel
        running = min(self._sequences, capacity)
        return EngineLoad(running, self._sequences - running, capacity, self._readings.kv_cache_permille)

    @property
    def pid(self) -> int | None:
        return None if self._supervisor is None else self._supervisor.pid

    async def until_ready(self) -> None:
        await self._ready.wait()

    async def until_away(self) -> None:
        """Wait until no engine is ready."""
        await self._away.wait()

    async def until_ended(self) -> None:
        """Wait until the engine that answers now does so no more."""
        await self._ended.wait()

    async def until_found_unfit(self) -> None:
        """Wait until an engine answered that must not serve."""
        await self._unfit.wait()

    @asynccontextmanager
    async def post(
        self, endpoint: Endpoint, body: bytes, timeout_seconds: float, sequences: int = 1
    ) -> AsyncIterator[Answer]:
        if not self.ready:
            raise EngineUnavailable("the engine is starting")
        self._sequences += sequences
        try:
            limit = min(timeout_seconds, self._settings.request_seconds)
            async with self._channel.post(endpoint, body, limit) as answer:
                yield answer
        finally:
            self._sequences -= sequences

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep an engine running, and know whether it answers, while the body runs."""
        async with (
            supervised(self._program, on_exit=self._on_exit) as self._supervisor,
            asyncio.TaskGroup() as tasks,
        ):
            watching = [tasks.create_task(self._watch()), tasks.create_task(self._read())]
            try:
                yield
            finally:
                for task in watching:
                    task.cancel()

    async def _watch(self) -> None:
        while True:
            self._ended.clear()
            if await self._until_answering():
                # Engines write of what they are asked, and from here on it is others who ask.
                self._hush()
                self._turn(ready=True)
                log.info("engine answers", engine=self._launch.name, model=self._settings.model, child=self.pid)
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(self._end_when_hanging())
                    await self._ended.wait()
                    watching.cancel()
            await self._ended.wait()

    async def _end_when_hanging(self) -> None:
        why = await until_hanging(self._channel, self._ask, self._settings.silent_seconds)
        log.warning("engine hangs and is killed", why=why, child=self.pid, sequences=self._sequences)
        self._turn(ready=False)
        self._kill()

    async def _ask(self) -> None:
        """Have this engine show that it works. A question may have to wait for as long as others' answers take: of one
        that does not say whether its work goes on meanwhile, no more is asked while it is full than that it is there.
        """
        if self._readings.tell_work or self._sequences < self._settings.parallel:
            await self._channel.probe(self._asked[0], self._settings.model)
        else:
            await self._channel.greet()

    def _turn(self, *, ready: bool) -> None:
        came, went = (self._ready, self._away) if ready else (self._away, self._ready)
        went.clear()
        came.set()

    def _hush(self) -> None:
        if self._supervisor is not None:
            self._supervisor.hush()

    def _kill(self) -> None:
        if self._supervisor is not None:
            self._supervisor.kill()

    async def _read(self) -> None:
        """Read what the engine says of itself, for ever, where it says it."""
        while self._readings.tell:
            await self._ready.wait()
            await self._readings.read()
            await asyncio.sleep(min(_READ_SECONDS, self._settings.silent_seconds / _READS))

    async def _until_answering(self) -> bool:
        """Return True once the engine has answered and may serve, False once it has ended or was killed: one that gives
        no answer or must not serve is, after so long.
        """
        try:
            async with asyncio.timeout(self._settings.start_seconds):
                while not self._ended.is_set():
                    try:
                        await self._probe()
                        # It loads them anew at every start, and by now it has.
                        await self._weights.require_unchanged()
                        return not self._ended.is_set()
                    except (EngineUnavailable, EngineTooSlow):
                        await asyncio.sleep(_PROBE_PAUSE_SECONDS)
                    except (SaltIgnored, KeyIgnored, PromptsShared, WeightsChanged, WeightsMissing) as error:
                        # It stays so for as long as this engine runs, and whoever asks it must not be served.
                        log.error("engine is not fit to serve", reason=error.reason, detail=str(error))
                        self._unfit.set()
                        await self._ended.wait()
        except TimeoutError:
            log.warning("engine gave no answer", seconds=self._settings.start_seconds)
            self._kill()
        return False

    async def _probe(self) -> None:
        """Raises `EngineUnavailable`, `EngineTooSlow`, `SaltIgnored`, `KeyIgnored` or `PromptsShared`."""
        if self._launch.must_prove:
            await self._prove()
            return
        if not self._launch.salted:
            await self._channel.probe(self._asked[0], self._settings.model)
            return
        for endpoint in self._asked:
            if endpoint.runs_model:
                await self._channel.require_salted(endpoint, self._settings.model)
            if endpoint in COUNTING:
                # One that refuses bad salts might part nothing by good ones. All its places look into one cache.
                await self._require_kept_apart(endpoint, parallel=1)

    async def _prove(self) -> None:
        settings = self._settings
        await self._channel.probe(self._asked[0], settings.model)
        async with EngineChannel(self._socket, secrets.token_hex(32)) as another:
            await require_key_wanted(another, self._asked[0], settings.model)
        for endpoint in self._asked:
            if endpoint.runs_model:
                await self._require_kept_apart(endpoint, settings.parallel)

    async def _require_kept_apart(self, endpoint: Endpoint, parallel: int) -> None:
        await require_kept_apart(
            self._channel,
            endpoint,
            self._settings.model,
            salted=self._launch.salted,
            parallel=parallel,
            context_tokens=self._settings.context_tokens,
        )

    @property
    def _asked(self) -> Sequence[Endpoint]:
        """Where it is asked, in the order in which endpoints are defined."""
        return [endpoint for endpoint in DEFINED if endpoint in self._launch.endpoints]

    def _on_exit(self, ended: Exit) -> None:
        self._turn(ready=False)
        self._readings.forget()
        # vLLM binds without removing what a killed one left.
        self._socket.unlink(missing_ok=True)
        self._ended.set()


@asynccontextmanager
async def open_engine(
    settings: EngineSettings, launch: Launch, weights: MeasuredWeights, state: Path
) -> AsyncIterator[SupervisedEngine]:
    """Run the engine while the body runs. It is not ready yet when this returns: see `until_ready`.

    `weights` are those that the launch names, as they were measured; it serves with no others.
    """
    api_key = secrets.token_hex(32)
    with _socket_folder(state) as folder:
        socket = folder / "engine.sock"
        async with EngineChannel(socket, api_key, settings.silent_seconds) as channel:
            engine = SupervisedEngine(settings, launch, weights, channel, socket, api_key)
            async with engine.running():
                yield engine


@contextmanager
def _socket_folder(state: Path) -> Iterator[Path]:
    """Give a folder that this user alone can enter: some engines let everybody write to their socket."""
    folder = state.resolve() / "engine"
    if len(os.fsencode(folder / "engine.sock")) > _LONGEST_SOCKET_PATH:
        with tempfile.TemporaryDirectory(prefix="teemesh-engine-") as short:
            yield Path(short)
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / "engine.sock").unlink(missing_ok=True)
    yield folder
