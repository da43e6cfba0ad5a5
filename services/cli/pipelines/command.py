"""It is responsible for `teemesh pipeline`: what made a model's weights, recorded by the jobs that did, and judged.

record  run a command as a stage, inside an attested guest, and have the log say what it read and made
show    find the stages that led to some weights in a running mesh's log, and keep them with their proofs
verify  walk from weights, or from an answer that was kept, to the data behind them, offline

Exit status of `verify`: 0 when every check passed, 1 when something is refused, 2 when what was given cannot be judged.
"""

from __future__ import annotations

import argparse

from services.cli.pipelines import record, show, verify


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh pipeline`."""
    parser = subparsers.add_parser("pipeline", help="record, find and verify the stages that made a model's weights")
    commands = parser.add_subparsers(dest="pipeline_command", required=True)
    record.add_command(commands)
    show.add_command(commands)
    verify.add_command(commands)
