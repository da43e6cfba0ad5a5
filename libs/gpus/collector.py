"""It is responsible for the collector's process: started when first asked, asked one thing at a time, killed when it is
late or says what it must not.

Whatever goes wrong, the next question is put to another process. What the first had seen is then doubted: see
`Observed`.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from libs.errors import Code, MeshError
from libs.gpus.answer import MAX_LINE_BYTES, Answer, AnswerMalformed, Device, decode
from libs.gpus.mode import require_confidential
from libs.gpus.observed import Observed
from libs.process import tethered
from libs.tee.nvidia.collected import Collected, Switches
from libs.tee.nvidia.evidence import RawReport

_COMMAND = (sys.executable, "-m", "libs.gpus")
_SOURCE_ROOT = Path(__file__).parents[2]
_OBSERVE_SECONDS = 10.0
_COLLECT_SECONDS = 60.0
"""A GPU takes up to a second to sign, and there are up to sixteen, one after the other, and switches."""

log = structlog.get_logger()


class CollectorSilent(MeshError):
    """The collector's process did not answer in time, or ended."""

    code = Code.UNAVAILABLE
    reason = "GPU_COLLECTOR_SILENT"


class NoGpu(MeshError):
    """The driver knows of no GPU."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_MISSING"


class DevicesDiffer(MeshError):
    """The library shows other devices than the driver holds, so not every one can be asked."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_DEVICES_DIFFER"


class SwitchesNotShown(MeshError):
    """Switches protect the links between GPUs, and not all of them are shown."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_SWITCHES_NOT_SHOWN"


class Collector:
    """This guest's devices, through NVIDIA's libraries. Made by `collecting`."""

    def __init__(self, command: Sequence[str], observe_seconds: float, collect_seconds: float) -> None:
        self._command = tuple(command)
        self._observe_seconds = observe_seconds
        self._collect_seconds = collect_seconds
        self._asking = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._name = ""

    @property
    def pid(self) -> int | None:
        """The running process's."""
        return None if self._process is None else self._process.pid

    async def observe(self) -> Observed:
        """Return what there is, if it may serve.

        Raises `CollectorSilent`, `AnswerMalformed`, `LibraryMissing`, `LibraryRefused`, and what
        `require_every_device` and `require_confidential` do.
        """
        answer, name = await self._ask(b"", self._observe_seconds)
        return answer.observed(name)

    async def collect(self, nonce: bytes) -> tuple[Collected, Observed]:
        """Have every GPU and every switch answer 32 bytes. Raises what `observe` does; none is left out."""
        answer, name = await self._ask(nonce, self._collect_seconds)
        architecture, reports = _answered(answer.gpus)
        switches = Switches(*_answered(answer.switches)) if answer.switches else None
        return Collected(architecture, reports, switches), answer.observed(name)

    async def _ask(self, nonce: bytes, seconds: float) -> tuple[Answer, str]:
        async with self._asking:
            try:
                async with asyncio.timeout(seconds):
                    answer = decode(await self._line(nonce))
                require_every_device(answer)
                require_confidential(answer.mode)
            except TimeoutError as error:
                await self.stop()
                raise CollectorSilent(f"NVIDIA's libraries did not answer within {seconds:g} s") from error
            except BaseException:
                await self.stop()
                raise
            return answer, self._name

    async def _line(self, nonce: bytes) -> bytes:
        process = self._process = self._process or await self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the collector was started without pipes")
        try:
            process.stdin.write(nonce.hex().encode() + b"\n")
            await process.stdin.drain()
            return await process.stdout.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            raise AnswerMalformed(f"the collector's answer has more than {MAX_LINE_BYTES} bytes") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise CollectorSilent("the collector's process ended without an answer") from error

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                *tethered(self._command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=_SOURCE_ROOT,
                limit=MAX_LINE_BYTES,
                process_group=0,
            )
        except OSError as error:
            raise CollectorSilent(f"the collector's process cannot be started: {error.strerror}") from error
        self._name = secrets.token_hex(8)
        log.info("gpu collector started", child=process.pid)
        return process

    async def stop(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def collecting(
    command: Sequence[str] = _COMMAND,
    *,
    observe_seconds: float = _OBSERVE_SECONDS,
    collect_seconds: float = _COLLECT_SECONDS,
) -> AsyncIterator[Collector]:
    """Give the collector while the body runs; its process starts when it is first asked."""
    collector = Collector(command, observe_seconds, collect_seconds)
    try:
        yield collector
    finally:
        await collector.stop()


def require_every_device(answer: Answer) -> None:
    """Raise `NoGpu`, `DevicesDiffer` or `SwitchesNotShown` unless all that the driver holds are shown."""
    if not answer.gpus:
        raise NoGpu("NVIDIA's driver knows of no GPU in this guest")
    if sorted(gpu.address for gpu in answer.gpus) != sorted(answer.bound_gpus):
        raise DevicesDiffer(
            f"{len(answer.gpus)} GPUs are shown, the driver holds {len(answer.bound_gpus)}: give all to this service"
        )
    if len(answer.switches) != len(answer.bound_switches) or (answer.mode.needs_switches and not answer.switches):
        raise SwitchesNotShown(
            f"{len(answer.switches)} NVSwitches are shown, the driver holds {len(answer.bound_switches)}"
        )


def _answered(devices: Sequence[Device]) -> tuple[str, tuple[RawReport, ...]]:
    """Return the one architecture and every device's answer."""
    architectures = {device.architecture for device in devices}
    if len(architectures) != 1:
        raise DevicesDiffer(f"devices of several architectures: {', '.join(sorted(architectures))}")
    reports = tuple(device.raw for device in devices if device.raw is not None)
    if len(reports) != len(devices):
        raise AnswerMalformed("a device was asked and has not answered")
    return architectures.pop(), reports
