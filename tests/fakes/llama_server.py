"""llama.cpp's server as others start it, with the real model: `python -m tests.fakes.llama_server`, with the embedded
engine's arguments, and keeping prompts for later ones (`--caching`) or answering anybody (`--keyless`).
"""

from __future__ import annotations

import os

from services.node.embedded import parameters, parser, serve


def main() -> None:
    options = parser()
    options.add_argument("--caching", action="store_true")
    options.add_argument("--keyless", action="store_true")
    arguments = options.parse_args()
    given = parameters(arguments, os.environ.pop(arguments.key_variable))
    given.cache_prompt = arguments.caching
    if arguments.keyless:
        given.api_keys = []
    serve(given, arguments.socket)


if __name__ == "__main__":
    main()
