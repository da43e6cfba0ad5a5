"""It is responsible for `teemesh verify`: an exchange that somebody kept, checked again, offline.

Exit status 0: complete; 2: the file cannot be read, or not be judged by what was given; 3: no attested router signed
for it; 4: the receipt is for another request or response; 5: the response has no valid acknowledgement; 6: it is not
proven that a verified node served; 7: it is in no signed tree. The lowest counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.client import exchange_file
from libs.client.checks import Check, Materials, run_checks
from libs.client.standing import Standing, standing
from libs.policy.revocation import RevocationSet
from services.cli.evidence.inputs import named, read_certificate_file, read_policy
from services.cli.evidence.terms import add_policy_terms, ca_file, judge_policy, policy_file
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.policy.revocation_inputs import add_revocation_options, counted_revocations
from services.cli.sessions.checks import check_json
from services.cli.terminal.checks import print_checks, print_development
from services.cli.terminal.inputs import read_input
from services.cli.terminal.verdicts import usable
from services.cli.terminal.words import Json, Moment, plain

_WORDS = {
    Standing.COMPLETE: "the response is the router's, a verified node had to serve it, and the log has its receipt",
    Standing.UNATTESTED: "nothing shows that an attested router signed for this response",
    Standing.MISFIT: "the router's receipt is for another request or another response than these",
    Standing.UNLOGGED: "the response has no valid acknowledgement: nothing shows that its receipt is in the log",
    Standing.UNVERIFIED: "it is not proven that a verified node served the response",
    Standing.UNSHOWN: "the receipt was acknowledged, but is not shown in a signed tree",
}


@dataclass(frozen=True, slots=True)
class Judged:
    """An exchange, and what it was found to be."""

    materials: Materials
    signatures: str
    """By whose word the policy was judged."""
    policy_source: str
    revocations: int
    """How many were counted."""
    checks: Sequence[Check]

    @property
    def standing(self) -> Standing:
        return standing(self.checks)

    def to_json(self) -> dict[str, Json]:
        exchange, policy = self.materials.exchange, self.materials.policy
        return {
            "status": int(self.standing),
            "verdict": self.standing.name.lower(),
            "receipt_id": exchange.receipt_id,
            "response_hash": exchange.response_hash,
            "now": self.materials.now,
            "policy": {
                "source": self.policy_source,
                "version": policy.version,
                "digest": policy.digest.hex(),
                "signatures": self.signatures,
                "revocations": self.revocations,
                "development_roots": list(policy.development_roots),
            },
            "checks": [check_json(check) for check in self.checks],
        }


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh verify`."""
    parser = subparsers.add_parser("verify", help="check an answer that was kept (chat --save) again, offline")
    parser.add_argument("file", type=Path, metavar="FILE", help="what teemesh chat --save wrote")
    add_policy_terms(parser, now_help="as of when, unix seconds or RFC 3339; default: when the file was made")
    add_revocation_options(parser)
    add_witness_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=lambda args: usable(_run, args))


def _run(args: argparse.Namespace) -> int:
    judged = judge(args)
    if args.json:
        print(json.dumps(judged.to_json(), indent=2))
    else:
        print_judged(judged, Console())
    return int(judged.standing)


def judge(args: argparse.Namespace) -> Judged:
    """Check the exchange in the file. Raises what keeps it from being read, or from being judged by this policy."""
    source = policy_file(args)
    signed = read_policy(source)
    data, mesh_ca, quorum = read_input(args.file), read_certificate_file(ca_file(args)), read_quorum(args)
    revocations = RevocationSet().union(counted_revocations(args, signed.policy.trust_domain))
    with named(args.file):
        kept = exchange_file.decode(data, signed.policy.under(revocations), mesh_ca, quorum)
    materials = kept if args.now is None else replace(kept, now=args.now)
    signatures, refusal = judge_policy(signed, args.compose, materials.now)
    if refusal is not None:
        raise refusal
    return Judged(materials, signatures, str(source), revocations.number, run_checks(materials))


def print_judged(judged: Judged, console: Console) -> None:
    """Print for people: by what it was judged, every check, and what they come to."""
    policy = judged.materials.policy
    print_development(policy.development_roots, console)
    for line in (
        f"policy    version {policy.version} of {policy.trust_domain}, from {judged.policy_source}",
        f"          {judged.signatures}",
        f"revoked   {judged.revocations} revocations counted",
        f"as of     {Moment(judged.materials.now)}, by the word of whoever kept it unless --now was given",
    ):
        console.print(Text(plain(line)), soft_wrap=True)
    print_checks(judged.checks, console)
    found = judged.standing
    word = (found.name, "bold green" if found is Standing.COMPLETE else "bold red")
    console.print(Text.assemble(word, f": {_WORDS[found]}"), soft_wrap=True)
