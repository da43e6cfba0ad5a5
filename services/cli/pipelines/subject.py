"""It is responsible for which weights a command is about: named by their digest, or by an answer that was kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from services.cli.evidence.terms import digest


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Add --weights and --answer, of which one must be given."""
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--weights", type=digest, metavar="HEX", help="as teemesh weights manifest prints it")
    subject.add_argument("--answer", type=Path, metavar="FILE", help="what teemesh chat --save wrote")
