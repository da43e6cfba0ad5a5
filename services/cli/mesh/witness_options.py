"""It is responsible for the witnesses that a command is told to demand: their keys, and how many must have cosigned."""

from __future__ import annotations

import argparse

from libs.transparency.quorum import Quorum


def add_witness_options(parser: argparse.ArgumentParser) -> None:
    """Add --witness and --quorum."""
    parser.add_argument(
        "--witness", action="append", default=[], metavar="VKEY", help="a witness's verifier key; may be repeated"
    )
    parser.add_argument("--quorum", type=int, metavar="N", help="how many of them must have cosigned (default: all)")


def read_quorum(args: argparse.Namespace) -> Quorum:
    """Return what is demanded. Raises `NoteMalformed`, `WitnessesTooFew`."""
    return Quorum.of(args.witness, args.quorum)
