"""Asks NVIDIA's libraries for its parent, who writes a request a line and reads an answer a line.

It ends with its parent, and at the first answer that the libraries refuse: what they know of devices may be of before.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import BinaryIO

from libs.gpus import nscq
from libs.gpus.answer import LibraryMissing, LibraryRefused, encode, encode_refusal
from libs.gpus.asking import ask
from libs.gpus.bound import SWITCH_DRIVER, bound

_LONGEST_REQUEST = 256


def main() -> int:
    # What a library prints must not be taken for an answer.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        _serve(sys.stdin.buffer, output)
    except (LibraryMissing, LibraryRefused) as error:
        output.write(encode_refusal(error))
        return 1
    except ModuleNotFoundError:
        output.write(encode_refusal(LibraryMissing("nvidia-ml-py is not installed: it is in the extra gpu")))
        return 1
    return 0


def _serve(requests: BinaryIO, output: BinaryIO) -> None:
    # Here, because it must be able to say that there is no such module.
    from libs.gpus import nvml

    with ExitStack() as stack:
        driver = stack.enter_context(nvml.opened())
        fabric = stack.enter_context(nscq.opened()) if bound(SWITCH_DRIVER) else None
        while line := requests.readline(_LONGEST_REQUEST):
            output.write(encode(ask(driver, fabric, bytes.fromhex(line.decode().strip()) or None)))


if __name__ == "__main__":
    sys.exit(main())
