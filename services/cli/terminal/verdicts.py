"""It is responsible for the exit statuses of commands that judge: refused is another answer than cannot be judged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from libs.errors import MeshError
from services.cli.terminal.words import plain

ACCEPTED, REFUSED, UNUSABLE = 0, 1, 2


def usable(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run; what cannot be used is another exit status than what is refused."""
    try:
        return run(args)
    except MeshError as error:
        return say_unusable(error)


def say_unusable(error: MeshError, remedy: str = "") -> int:
    """Say in one line why nothing was judged."""
    sys.stderr.write(f"teemesh: {error.reason}: {plain(f'{error}; {remedy}' if remedy else str(error))}\n")
    return UNUSABLE
