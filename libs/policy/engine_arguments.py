"""It is responsible for which further arguments an engine may be measured with: known ones that leave true what the
node says of it.

A node claims weights, says where its engine listens and keeps its text out of logs. An option that loads other files or
code, moves the engine, takes its key or logs requests would make that false, measured or not. What an option of
tomorrow does is not known, so all but these are refused. Names and forms are those of vLLM 0.32's server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from libs.errors import Code, MeshError

_VALUED = frozenset(
    {
        "--allowed-media-domains",
        "--attention-backend",
        "--block-size",
        "--convert",
        "--dtype",
        "--gpu-memory-utilization",
        "--kv-cache-dtype",
        "--kv-cache-memory-bytes",
        "--max-num-batched-tokens",
        "--pipeline-parallel-size",
        "--quantization",
        "--reasoning-parser",
        "--runner",
        "--seed",
        "--structured-outputs-config.backend",
        "--tensor-parallel-size",
        "--tool-call-parser",
    }
)
_SWITCHES = frozenset(
    {
        "--async-scheduling",
        "--disable-custom-all-reduce",
        "--enable-auto-tool-choice",
        "--enable-chunked-prefill",
        "--enable-expert-parallel",
        "--enable-prefix-caching",
        "--enforce-eager",
        "--language-model-only",
    }
)
_NO = "--no-"
_VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A name or a number: neither a path nor another option."""


class EngineArgumentsRefused(MeshError):
    """A measured argument of the engine is none of those that are known to leave true what the node says of it."""

    code = Code.INVALID_ARGUMENT
    reason = "ENGINE_ARGUMENTS_REFUSED"


def require_known(kind: str, arguments: Sequence[str]) -> None:
    """Raise `EngineArgumentsRefused` unless each is a known option of vLLM's, in full and once, with its value if it
    takes one. The embedded engine knows none."""
    left = list(arguments)
    if left and kind != "vllm":
        raise EngineArgumentsRefused(f"the engine {kind} takes no arguments")
    seen: set[str] = set()
    while left:
        name, equals, value = left.pop(0).partition("=")
        option = option_of(name)
        if option in _VALUED:
            value = value if equals else left.pop(0) if left else ""
            if not _VALUE.fullmatch(value):
                raise EngineArgumentsRefused(f"the engine's argument {option} needs a name or a number")
        elif equals or _switch(option) not in _SWITCHES:
            raise EngineArgumentsRefused(f"the engine's argument {name[:64]!r} is none of those that are known")
        if _switch(option) in seen:
            raise EngineArgumentsRefused(f"the engine's argument {option} is given twice")
        seen.add(_switch(option))


def option_of(name: str) -> str:
    """Return an option's one name: vLLM takes underscores for dashes."""
    return name.replace("_", "-")


def _switch(option: str) -> str:
    return "--" + option.removeprefix(_NO) if option.startswith(_NO) else option
