"""It is responsible for how each kind of engine is started: its command, its environment, and what of that is claimed.

All kinds speak OpenAI's HTTP API on a unix socket and want an API key; the rest of the node knows no difference but
whether the engine shares a prefix cache among requests, and whether that is known of it or must be shown.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libs import jcs
from libs.aci.endpoints import DEFINED, FIRST, Endpoint
from libs.policy.engine_arguments import option_of
from libs.policy.engine_server import CONTEXT_TOKENS, MODEL, PARALLEL, SOCKET, WEIGHTS, EngineServer, fill
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import WeightsMissing, packaged_weights
from services.node.api.bodies import BEYOND_TEXT
from services.node.calling import Calling
from services.node.channel import SILENT_SECONDS
from services.node.chat_template import SMOLLM2_CALL
from services.node.opening import SealedSettings
from services.node.requests_fault import RequestsFault, of_embedded

_EMBEDDED_KEY_VARIABLE = "TEEMESH_ENGINE_KEY"
_VLLM_KEY_VARIABLE = "VLLM_API_KEY"
_VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Nothing of a response outlives it.
    "VLLM_ENABLE_RESPONSES_API_STORE": "0",
    # A URL that the measured arguments allow may not lead to one that they do not.
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    # Its processes speak to each other without keys: on this machine, whatever networks its container has.
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    # This very interface; without "=" it would be the beginning of a name.
    "NCCL_SOCKET_IFNAME": "=lo",
}
_VLLM_KV_CACHE = "vllm:kv_cache_usage_perc"
_NO_CACHING = "--no-enable-prefix-caching"
_COUNT_CACHED = "--enable-prompt-tokens-details"
_MEDIA_DOMAINS = "--allowed-media-domains"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The TOML table [engine]. Which engine it is, and its further arguments, are measured: see `MeasuredEngine`."""

    model: str = "smollm2-135m"
    """The id under which the model is served; policy must list it."""
    weights: Path | None = None
    """The GGUF file ("embedded"), the model's folder ("vllm"), or either ("openai-server"); without it, the packaged
    model's file, but for vLLM. Where they come encrypted, where they are opened.

    Policy lists their digest.
    """
    manifest: Path | None = None
    """The manifest that the files must agree with: see `teemesh weights`. Policy decides with or without it; with it,
    this node says which file is wrong, and does not start."""
    sealed: SealedSettings | None = None
    """Where the weights come from if they come encrypted: `weights` is then where they are opened. Needs `manifest`."""
    context_tokens: int = 2048
    """Longest prompt and answer of one request together, tokens."""
    parallel: int = 2
    """How many sequences are generated at once: a request is one for each of its prompts and choices. One that is more
    is refused."""
    threads: int = 0
    """CPU threads of the embedded engine; 0 means one less than there are cores, because beside other busy processes
    an engine on every core is several times slower."""
    start_seconds: float = 600.0
    """How long the engine may take from its start to its first answer, seconds."""
    request_seconds: float = 300.0
    """How long one request may take at most, seconds; a caller's shorter deadline wins."""
    silent_seconds: float = SILENT_SECONDS
    """How long the engine may give no byte of a stream that it began, and no answer to this node's own questions, where
    nothing else is heard of its work, seconds. Then the stream ends; an engine that does not answer is killed and
    started anew."""
    memory_bytes: int = 0
    """How much private memory each process of the engine may take; one that takes more ends. 0: no bound of its own."""
    tenant_parallel: int = 0
    """How many sequences of one tenant this node takes at once, whichever routers send them. 0: any number."""

    def __post_init__(self) -> None:
        if self.sealed is not None and None in (self.weights, self.manifest):
            raise ValueError("engine.sealed needs engine.weights, where they are opened, and engine.manifest")
        if not self.silent_seconds > 0.0:
            raise ValueError("engine.silent_seconds must be over 0")
        if self.memory_bytes < 0 or self.tenant_parallel < 0:
            raise ValueError("engine.memory_bytes and engine.tenant_parallel must be at least 0")

    @property
    def effective_threads(self) -> int:
        return self.threads or max(1, (os.cpu_count() or 2) - 1)


@dataclass(frozen=True, slots=True)
class Launch:
    """How one engine is started."""

    name: str
    """The engine and its version; stands in the evidence claims."""
    weights: Path
    """Where they lie, or will: a file or a folder."""
    command: tuple[str, ...]
    """Program and arguments, with places for weights and socket (`WEIGHTS`, `SOCKET`)."""
    arguments: tuple[str, ...]
    """What of it decides how it answers: hashed into the evidence claims."""
    environment: Mapping[str, str]
    """What it gets beside what `services.node.environment` lets through."""
    key_variable: str
    endpoints: frozenset[Endpoint]
    """Where it is asked; stands in the evidence claims."""
    salted: bool
    """True when it keeps one prefix cache for all requests and so needs a salt per tenant; it serves once it has shown
    that it parts its cache by them."""
    must_prove: bool = False
    """True when nothing is known of it: it serves once it has shown that it is fit to, see `services.node.proving`."""
    lacks: frozenset[str] = frozenset()
    """Types of what a message is made of that it does not take."""
    fetches: bool = False
    """True when it was measured with the domain from which it may fetch what prompts name by URL, and judges it."""
    calling: Calling | None = None
    """The help that it needs to call a tool that is demanded; None where it needs none."""
    requests_faults: tuple[RequestsFault, ...] = ()
    """What it says of requests that are at fault as if it had failed itself."""
    kv_cache_gauge: str | None = None
    """Name of the metric that says what share of its key-value cache is in use, from 0 to 1; None when it has none."""
    work_metrics: frozenset[str] = frozenset()
    """Names of metrics that change while its model works, and never otherwise."""

    @property
    def arguments_sha256(self) -> bytes:
        # Without paths: where weights and socket lie says nothing about the answers, and weights have their own digest.
        return hashlib.sha256(jcs.dumps([*self.arguments])).digest()

    def argv(self, weights: Path, socket: Path) -> list[str]:
        # Absolute: what begins with a dash would be an option.
        paths = {WEIGHTS: str(weights.absolute()), SOCKET: str(socket.absolute())}
        return [fill(part, paths) for part in self.command]


def plan(settings: EngineSettings, engine: MeasuredEngine, name: str) -> Launch:
    """Decide how to start the measured engine, which calls itself so. Raises `WeightsMissing`."""
    if engine.server is not None:
        return _server(settings, engine, engine.server, name)
    return _vllm(settings, engine, name) if engine.kind == "vllm" else _embedded(settings, engine, name)


def _embedded(settings: EngineSettings, engine: MeasuredEngine, name: str) -> Launch:
    given = {
        "--model-alias": settings.model,
        "--context": str(settings.context_tokens),
        "--parallel": str(settings.parallel),
        "--threads": str(settings.effective_threads),
        # That of other weights is their own.
        **({"--chat-template": "smollm2"} if settings.weights is None else {}),
    }
    arguments = tuple(part for option in given.items() for part in option)
    return Launch(
        name=name,
        weights=settings.weights or packaged_weights(),
        command=(
            *(sys.executable, "-I", "-m", "services.node.embedded", "--key-variable", _EMBEDDED_KEY_VARIABLE),
            *("--weights", WEIGHTS, *arguments, "--socket", SOCKET),
        ),
        arguments=arguments,
        environment={},
        key_variable=_EMBEDDED_KEY_VARIABLE,
        endpoints=engine.endpoints or frozenset(DEFINED),
        salted=False,
        # It has a model of text alone, and answers what is more as if it had failed.
        lacks=BEYOND_TEXT,
        calling=Calling(opening=SMOLLM2_CALL if settings.weights is None else None),
        requests_faults=of_embedded(settings.context_tokens),
        # Steps of the model, over a part of a prompt or for a token; those of tokens are told at an answer's end alone.
        work_metrics=frozenset({"llamacpp:n_decode_total"}),
    )


def _vllm(settings: EngineSettings, engine: MeasuredEngine, name: str) -> Launch:
    if settings.weights is None:
        raise WeightsMissing("vLLM needs engine.weights: the folder with the model's files")
    given = {
        "--served-model-name": settings.model,
        "--max-model-len": str(settings.context_tokens),
        "--max-num-seqs": str(settings.parallel),
    }
    salted = _NO_CACHING not in map(option_of, engine.arguments)
    arguments = (
        *(part for option in given.items() for part in option),
        "--disable-uvicorn-access-log",
        # By what it counts it shows that it parts its cache.
        *((_COUNT_CACHED,) if salted else ()),
        # Processed media that it keeps are found by their hash, or a name they were given, whatever the salt.
        *("--mm-processor-cache-gb", "0"),
        *engine.arguments,
        "--no-enable-log-requests",
    )
    return Launch(
        name=name,
        weights=settings.weights,
        # Not the command `vllm`, which the CPU build does not have. Isolated, as it was asked for its version.
        command=(
            *(engine.python or sys.executable, "-I", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", WEIGHTS, *arguments, "--uds", SOCKET),
        ),
        arguments=arguments,
        environment=_VLLM_ENVIRONMENT,
        key_variable=_VLLM_KEY_VARIABLE,
        # Which of the others it has, and takes a salt at, is for who measures its version to say.
        endpoints=engine.endpoints or frozenset(FIRST),
        salted=salted,
        fetches=_MEDIA_DOMAINS in (option_of(argument.partition("=")[0]) for argument in engine.arguments),
        kv_cache_gauge=_VLLM_KV_CACHE,
        # A prompt's tokens are told once it is read whole. Until then the cache fills.
        work_metrics=frozenset({"vllm:generation_tokens_total", "vllm:prompt_tokens_total", _VLLM_KV_CACHE}),
    )


def _server(settings: EngineSettings, engine: MeasuredEngine, server: EngineServer, name: str) -> Launch:
    known = {
        MODEL: settings.model,
        PARALLEL: str(settings.parallel),
        CONTEXT_TOKENS: str(settings.context_tokens),
    }
    arguments = tuple(fill(argument, known) for argument in engine.arguments)
    return Launch(
        name=name,
        weights=settings.weights or packaged_weights(),
        command=(server.program, *arguments),
        arguments=arguments,
        environment={},
        key_variable=server.key_variable,
        endpoints=engine.endpoints or frozenset(FIRST),
        salted=server.cache_salt,
        must_prove=True,
    )
