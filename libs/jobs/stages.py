"""It is responsible for one run of a stage: what it reads is hashed before, what it makes after, and both must hold.

Digests are those of manifests (`libs.weights`), so weights that a stage made are called as the node calls those that it
serves. Whether the work used its inputs, and nothing else, is for the measured code to answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from libs import jcs
from libs.errors import Code, MeshError
from libs.events.kinds import Kind
from libs.events.pipeline import Artifact, Stage, Step, require_recordable
from libs.events.publish import Committed
from libs.events.vault import VaultKey
from libs.jobs.sealed_inputs import Release, SealedInput, opened
from libs.jobs.stated_privacy import read_stated
from libs.weights import measure

_MILLISECONDS = 1000
_NOT_YET = bytes(32)


class OutputThereBefore(MeshError):
    """What a stage is to make lies there already: nobody could say that the stage made it."""

    code = Code.ALREADY_EXISTS
    reason = "OUTPUT_THERE_BEFORE"


@dataclass(frozen=True, slots=True)
class Given:
    """What a stage reads."""

    path: Path
    """A file, or a folder with all its files."""
    made_by: bytes | None = None
    """Entry id of the stage that made it; None where it comes from outside."""
    sealed: SealedInput | None = None
    """Where it comes encrypted: then it is opened at the path for the stage, and lies nowhere before and after."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stage that the log has."""

    entry_id: bytes
    """By which later stages name it."""
    stage: Stage


class StagePublisher(Protocol):
    """What writes to the log."""

    async def commit(
        self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None, timeout: float
    ) -> Committed: ...


class Stages:
    """Runs the stages of one job."""

    def __init__(
        self,
        publisher: StagePublisher,
        ledger_seconds: float,
        release: Release,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`release` gives the keys of what comes sealed, `clock` Unix seconds."""
        self._publisher = publisher
        self._release = release
        self._ledger_seconds = ledger_seconds
        self._clock = clock

    async def run(
        self,
        step: Step,
        name: str,
        work: Callable[[], Awaitable[None]],
        *,
        inputs: Mapping[str, Given],
        outputs: Mapping[str, Path],
        parameters: Mapping[str, Any],
        privacy: Path | None = None,
    ) -> Recorded:
        """Do the work between hashing what it reads and what it made; return once the ledger has acknowledged it.

        Names are for everybody to read; of `parameters` the log has the digest alone. `privacy` is a file in which the
        work says what it spent. Work that raises leaves no entry.

        Raises `StageMalformed`, `OutputThereBefore`, `PrivacyNotStated`, `WeightsMissing`, `WeightsChanged`, what
        opening a sealed input raises, and what committing raises: of these `LedgerUnavailable` leaves the entry in the
        outbox, from which it is still logged.
        """
        for path in (*outputs.values(), *(() if privacy is None else (privacy,))):
            if path.exists():
                raise OutputThereBefore(f"{path} exists: name what the stage will make")
        async with AsyncExitStack() as opening:
            for given in inputs.values():
                if given.sealed is not None:
                    await opening.enter_async_context(opened(given.sealed, given.path, self._release))
            done = await self._done(step, name, work, inputs, outputs, parameters)
            if privacy is not None:
                done = replace(done, privacy=await read_stated(privacy))
        committed = await self._publisher.commit(Kind.PIPELINE, done.body(), vault=None, timeout=self._ledger_seconds)
        return Recorded(committed.entry_id, done)

    async def _done(
        self,
        step: Step,
        name: str,
        work: Callable[[], Awaitable[None]],
        inputs: Mapping[str, Given],
        outputs: Mapping[str, Path],
        parameters: Mapping[str, Any],
    ) -> Stage:
        measured = {each: await measure(given.path) for each, given in inputs.items()}
        taken = tuple(Artifact(each, measured[each].manifest.digest, given.made_by) for each, given in inputs.items())
        settings, began_ms = hashlib.sha256(jcs.dumps(dict(parameters))).digest(), self._now_ms()

        def stage(made: Sequence[Artifact]) -> Stage:
            ended_ms = max(began_ms, self._now_ms())
            run = Stage(step, name, taken, tuple(made), settings, began_ms, ended_ms)
            require_recordable(run)
            return run

        # What could not be logged is found before days of work, not after them.
        stage([Artifact(each, _NOT_YET) for each in outputs])
        await work()
        for each in measured.values():
            await each.require_unchanged()
        return stage([Artifact(each, (await measure(path)).manifest.digest) for each, path in outputs.items()])

    def _now_ms(self) -> int:
        return int(self._clock() * _MILLISECONDS)
