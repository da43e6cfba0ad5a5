"""It is responsible for `teemesh pipeline verify`: from weights, or a kept answer, to the data behind them, offline."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from libs.aci import receipt as receipts
from libs.client import lineage_file
from libs.client.lineage import Terms, check_lineage, served_weights
from libs.client.standing import Standing
from libs.errors import Code, MeshError
from services.cli.chat import verify as answers
from services.cli.evidence.inputs import named
from services.cli.evidence.terms import digest
from services.cli.pipelines.subject import add_subject
from services.cli.policy.grounds import Grounds, add_grounds, print_grounds, read_grounds
from services.cli.sessions.checks import check_json
from services.cli.terminal.checks import print_checks
from services.cli.terminal.inputs import read_bounded_input
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable


class AnswerNotProven(MeshError):
    """The answer lacks a proof of its own, so what its receipt names counts for nothing."""

    code = Code.PERMISSION_DENIED
    reason = "ANSWER_NOT_PROVEN"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh pipeline verify`."""
    parser = commands.add_parser("verify", help="walk from weights, or an answer that was kept, to their data, offline")
    parser.add_argument("lineage", type=Path, metavar="FILE", help="what teemesh pipeline show --save wrote")
    add_subject(parser)
    parser.add_argument(
        "--data",
        type=digest,
        action="append",
        default=[],
        metavar="HEX",
        help="must be among it; may be repeated",
    )
    add_grounds(parser, now_help="as of when, unix seconds or RFC 3339; default: when each file was made")
    parser.set_defaults(run=lambda args: usable(_run, args))


def _run(args: argparse.Namespace) -> int:
    grounds = read_grounds(args)
    with named(args.lineage):
        lineage = lineage_file.decode(read_bounded_input(args.lineage, lineage_file.MAX_BYTES))
    now = lineage.gathered_at if args.now is None else args.now
    signatures = grounds.require_policy(now)
    terms = Terms(grounds.policy, grounds.mesh_ca, now, grounds.quorum, frozenset(args.data))
    checks = check_lineage(lineage, _weights(args, grounds), terms)
    holds = all(check.passed for check in checks)
    if args.json:
        said = {"verified": holds, "now": now, "checks": [check_json(check) for check in checks]}
        print(json.dumps(said, indent=2))
    else:
        console = Console()
        print_grounds(grounds, signatures, now, console)
        print_checks(checks, console)
    return ACCEPTED if holds else REFUSED


def _weights(args: argparse.Namespace, grounds: Grounds) -> Callable[[], bytes]:
    """Return what gives the digest that is asked about. Raises what keeps the answer from being judged at all."""
    if args.answer is None:
        return lambda: bytes(args.weights)
    judged = answers.judge(args.answer, grounds, args.now)

    def served() -> bytes:
        receipt = judged.materials.receipt
        if judged.standing is not Standing.COMPLETE or isinstance(receipt, MeshError):
            raise AnswerNotProven(f"teemesh verify finds it {judged.standing.name.lower()}")
        return served_weights(receipts.parse(receipt))

    return served
