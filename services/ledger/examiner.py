"""It is responsible for examining sealed records in a process of its own: `python -m services.ledger.examiner`.

Opening a record and reading its entry is half of what an entry costs, so it has a core of its own. The process keeps
nothing: each request brings the keys that it needs. It comes to know tenants' vault keys, so its memory is protected as
the ledger's is. It ends with its parent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from libs.process import protect_memory
from services.ledger.intake.examination import LENGTH_SIZE, answer, parse_request


def requests(source: BinaryIO) -> Iterator[bytes]:
    """Yield the requests until the pipe is closed."""
    while len(head := source.read(LENGTH_SIZE)) == LENGTH_SIZE:
        length = int.from_bytes(head, "big")
        data = source.read(length)
        if len(data) < length:
            return
        yield data


def main() -> int:
    """Serve the parent until it closes the pipe."""
    protect_memory()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as output:
        for request in requests(sys.stdin.buffer):
            output.write(answer(parse_request(request)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
