"""It is responsible for which further arguments vLLM may be measured with: known ones that leave true what the node
says of it, each with a value of its kind.

A node claims weights, says where its engine listens and keeps its text out of logs. An option that loads other files or
code, moves the engine, takes its key or logs requests would make that false, measured or not. What an option of
tomorrow does is not known, so all but these are refused. Names and forms are those of vLLM 0.32's server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from libs.errors import Code, MeshError


@dataclass(frozen=True, slots=True)
class _Form:
    """What a value must be."""

    pattern: re.Pattern[str]
    words: str


_NAME = _Form(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"), "a name")
"""Neither a path nor another option. Which names there are grows with vLLM's versions: it refuses others itself."""
_COUNT = _Form(re.compile(r"[1-9][0-9]{0,9}"), "a whole number of at least 1")
_AMOUNT = _Form(re.compile(r"[1-9][0-9]{0,14}[kKmMgGtT]?|[0-9]{1,9}\.[0-9]{1,9}[kmgt]"), "a number, as 25600 or 25.6k")
_SHARE = _Form(re.compile(r"0\.[0-9]{0,9}[1-9][0-9]{0,9}|1(\.0{1,9})?"), "a number over 0 and at most 1")
_NUMBER = _Form(re.compile(r"[0-9]{1,19}"), "a whole number")
_PRECISION = _Form(
    re.compile("auto|half|float16|bfloat16|float|float32"), "auto, half, float16, bfloat16, float or float32"
)

_VALUED = {
    "--allowed-media-domains": _NAME,
    "--attention-backend": _NAME,
    "--block-size": _COUNT,
    "--convert": _NAME,
    "--dtype": _PRECISION,
    "--gpu-memory-utilization": _SHARE,
    "--kv-cache-dtype": _NAME,
    "--kv-cache-memory-bytes": _AMOUNT,
    "--max-num-batched-tokens": _AMOUNT,
    "--pipeline-parallel-size": _COUNT,
    "--quantization": _NAME,
    "--reasoning-parser": _NAME,
    "--runner": _NAME,
    "--seed": _NUMBER,
    "--structured-outputs-config.backend": _NAME,
    "--tensor-parallel-size": _COUNT,
    "--tool-call-parser": _NAME,
}
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
KNOWN = _SWITCHES | _VALUED.keys()
"""Every option, as operators are told of them."""
_NO = "--no-"


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
        form = _VALUED.get(option)
        if form is not None:
            value = value if equals else left.pop(0) if left else ""
            if not form.pattern.fullmatch(value):
                raise EngineArgumentsRefused(f"the engine's argument {option} needs {form.words}")
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
