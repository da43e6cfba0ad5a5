"""It is responsible for the options by which a command finds a running mesh, and for how long it waits for it."""

from __future__ import annotations

import argparse
from pathlib import Path

from services.cli.mesh.layout import DEFAULT_STATE

_TIMEOUT_SECONDS = 15.0
PUBLISHING_SECONDS = 30.0
"""For what a KMS makes durable before it answers."""

_MAX_TIMEOUT_SECONDS = 3600.0


def add_mesh_options(parser: argparse.ArgumentParser, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
    """Add `--mesh` and `--timeout-seconds`."""
    parser.add_argument("--mesh", type=Path, default=DEFAULT_STATE / "mesh.json", help="default: %(default)s")
    add_timeout_option(parser, timeout_seconds)


def add_timeout_option(parser: argparse.ArgumentParser, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
    """Add `--timeout-seconds`."""
    parser.add_argument(
        "--timeout-seconds",
        type=_seconds,
        default=timeout_seconds,
        metavar="N",
        help="for each service that is asked; default: %(default)s",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("give seconds") from error
    if not 0 < seconds <= _MAX_TIMEOUT_SECONDS:
        raise argparse.ArgumentTypeError(f"give seconds, more than 0 and at most {_MAX_TIMEOUT_SECONDS:g}")
    return seconds
