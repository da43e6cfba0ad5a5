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
from services.node.chat_template import SMOLLM2
from services.node.requests_fault import MOST_EMBEDDED_TOKENS

_LOG_ERRORS_ONLY = 1

_TEMPLATES = {"smollm2": SMOLLM2}


def main() -> None:
    arguments = parser().parse_args()
    serve(parameters(arguments, os.environ.pop(arguments.key_variable)), arguments.socket)


def serve(given: CommonParams, socket: Path) -> None:
    """Serve until terminated."""
    protect_memory()
    # Blocked before the server makes its threads, which inherit the mask: so the signal waits for this thread alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    os.umask(0o077)
    # The server refuses to bind over a file, and leaves its own behind when it is killed.
    socket.unlink(missing_ok=True)
    server = Server(given)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server
    socket.unlink(missing_ok=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    options = argparse.ArgumentParser(prog="services.node.embedded", description="Serve one GGUF model.")
    options.add_argument("--key-variable", required=True, help="environment variable that holds the API key")
    options.add_argument("--socket", type=Path, required=True, help="unix socket to serve on; must end in .sock")
    options.add_argument("--weights", type=Path, required=True, help="the GGUF file")
    options.add_argument("--model-alias", required=True, help="the model id that clients ask for")
    options.add_argument("--context", type=int, required=True, help="tokens of context for one sequence")
    options.add_argument("--parallel", type=int, required=True, help="sequences generated at once")
    options.add_argument("--threads", type=int, required=True, help="CPU threads")
    options.add_argument("--chat-template", choices=sorted(_TEMPLATES), help="instead of the one in the GGUF file")
    return options


def parameters(arguments: argparse.Namespace, api_key: str) -> CommonParams:
    """Return what the server is started with."""
    given = CommonParams()
    given.model.path = str(arguments.weights)
    given.model_alias = {arguments.model_alias}
    # The engine divides its context among the slots.
    given.n_ctx = arguments.context * arguments.parallel
    given.n_parallel = arguments.parallel
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = arguments.threads
    given.hostnames = [str(arguments.socket)]
    given.api_keys = [api_key]
    given.cors_origins = ""
    given.ui = False
    given.endpoint_slots = False
    given.endpoint_props = False
    # What the node reads there says whether the model works. Whoever asks needs the key.
    given.endpoint_metrics = True
    # A stream is silent where its model is: comments between its events would hide that it hangs.
    given.sse_ping_interval = -1
    given.offline = True
    # Prompts of different tenants meet in one process: a shared prefix cache would tell one, by its speed, what
    # another has asked, and this engine knows no cache salt.
    given.cache_prompt = False
    given.cache_idle_slots = False
    given.cache_ram_mib = 0
    # The model that generates embeds, too: an input is the mean of what the model makes of its tokens.
    given.embedding = True
    given.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if arguments.chat_template is not None:
        given.chat_template = _TEMPLATES[arguments.chat_template]
    given.n_batch = given.n_ubatch = min(arguments.context, MOST_EMBEDDED_TOKENS)
    given.verbosity = _LOG_ERRORS_ONLY
    return given


if __name__ == "__main__":
    main()
