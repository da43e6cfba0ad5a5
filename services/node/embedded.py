"""It is responsible for the embedded engine: a small language model that speaks OpenAI's HTTP API on a unix socket.

It is a process of its own, `python -m services.node.embedded`, that the node supervises exactly as it supervises vLLM.
The API key comes in the environment, never in the arguments, which any local user can read.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from xllamacpp import CommonParams, Server, llama_pooling_type  # type: ignore[attr-defined]  # it has no types

from libs.process import protect_memory

_LOG_ERRORS_ONLY = 1
_MOST_EMBEDDED_TOKENS = 2048
"""Of one input. It is embedded at once, so the memory for that grows with it."""


def main() -> None:
    arguments = _parser().parse_args()
    protect_memory()
    # Blocked before the server makes its threads, which inherit the mask: so the signal waits for this thread alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    os.umask(0o077)
    # The server refuses to bind over a file, and leaves its own behind when it is killed.
    arguments.socket.unlink(missing_ok=True)
    server = Server(_parameters(arguments, os.environ.pop(arguments.key_variable)))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server
    arguments.socket.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="services.node.embedded", description="Serve one GGUF model.")
    parser.add_argument("--key-variable", required=True, help="environment variable that holds the API key")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to serve on; must end in .sock")
    parser.add_argument("--weights", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--model-alias", required=True, help="the model id that clients ask for")
    parser.add_argument("--context", type=int, required=True, help="tokens of context for one sequence")
    parser.add_argument("--parallel", type=int, required=True, help="sequences generated at once")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads")
    return parser


def _parameters(arguments: argparse.Namespace, api_key: str) -> CommonParams:
    parameters = CommonParams()
    parameters.model.path = str(arguments.weights)
    parameters.model_alias = {arguments.model_alias}
    # The engine divides its context among the slots.
    parameters.n_ctx = arguments.context * arguments.parallel
    parameters.n_parallel = arguments.parallel
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = arguments.threads
    parameters.hostnames = [str(arguments.socket)]
    parameters.api_keys = [api_key]
    parameters.cors_origins = ""
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.endpoint_props = False
    # What the node reads there says whether the model works. Whoever asks needs the key.
    parameters.endpoint_metrics = True
    # A stream is silent where its model is: comments between its events would hide that it hangs.
    parameters.sse_ping_interval = -1
    parameters.offline = True
    # Prompts of different tenants meet in one process: a shared prefix cache would tell one, by its speed, what
    # another has asked, and this engine knows no cache salt.
    parameters.cache_prompt = False
    parameters.cache_idle_slots = False
    parameters.cache_ram_mib = 0
    # The model that generates embeds, too: an input is the mean of what the model makes of its tokens.
    parameters.embedding = True
    parameters.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.n_batch = parameters.n_ubatch = min(arguments.context, _MOST_EMBEDDED_TOKENS)
    parameters.verbosity = _LOG_ERRORS_ONLY
    return parameters


if __name__ == "__main__":
    main()
