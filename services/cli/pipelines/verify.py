"""It is responsible for `teemesh pipeline verify`: from weights, or a kept answer, to the data behind them, offline."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.aci import receipt as receipts
from libs.client import lineage_file
from libs.client.lineage import Terms, check_lineage, served_weights
from libs.client.standing import Standing
from libs.errors import Code, MeshError
from libs.policy.revocation import RevocationSet
from services.cli.chat import verify as answers
from services.cli.evidence.inputs import named, read_certificate_file, read_policy
from services.cli.evidence.terms import add_policy_terms, ca_file, digest, judge_policy, policy_file
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.pipelines.subject import add_subject
from services.cli.policy.revocation_inputs import add_revocation_options, counted_revocations
from services.cli.sessions.checks import check_json
from services.cli.terminal.checks import print_checks, print_development
from services.cli.terminal.inputs import read_bounded_input
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable
from services.cli.terminal.words import Moment, plain


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
    add_policy_terms(parser, now_help="as of when, unix seconds or RFC 3339; default: when each file was made")
    add_revocation_options(parser)
    add_witness_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=lambda args: usable(_run, args))


def _run(args: argparse.Namespace) -> int:
    source = policy_file(args)
    signed = read_policy(source)
    mesh_ca = read_certificate_file(ca_file(args))
    with named(args.lineage):
        lineage = lineage_file.decode(read_bounded_input(args.lineage, lineage_file.MAX_BYTES))
    now = lineage.gathered_at if args.now is None else args.now
    signatures, refusal = judge_policy(signed, args.compose, now)
    if refusal is not None:
        raise refusal
    revocations = RevocationSet().union(counted_revocations(args, signed.policy.trust_domain))
    policy = signed.policy.under(revocations)
    terms = Terms(policy, mesh_ca, now, read_quorum(args), frozenset(args.data))
    checks = check_lineage(lineage, _weights(args), terms)
    holds = all(check.passed for check in checks)
    if args.json:
        said = {"verified": holds, "now": now, "checks": [check_json(check) for check in checks]}
        print(json.dumps(said, indent=2))
    else:
        console = Console()
        print_development(policy.development_roots, console)
        for line in (
            f"policy    version {policy.version} of {policy.trust_domain}, from {source}",
            f"          {signatures}",
            f"revoked   {revocations.number} revocations counted",
            f"as of     {Moment(now)}, by the word of whoever kept it unless --now was given",
        ):
            console.print(Text(plain(line)), soft_wrap=True)
        print_checks(checks, console)
    return ACCEPTED if holds else REFUSED


def _weights(args: argparse.Namespace) -> Callable[[], bytes]:
    """Return what gives the digest that is asked about. Raises what keeps the answer from being judged at all."""
    if args.answer is None:
        return lambda: bytes(args.weights)
    judged = answers.judge(argparse.Namespace(**{**vars(args), "file": args.answer}))

    def served() -> bytes:
        receipt = judged.materials.receipt
        if judged.standing is not Standing.COMPLETE or isinstance(receipt, MeshError):
            raise AnswerNotProven(f"teemesh verify finds it {judged.standing.name.lower()}")
        return served_weights(receipts.parse(receipt))

    return served
