"""It is responsible for what a kept file is judged by, offline: policy, mesh CA, revocations, witnesses, and when."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet
from libs.policy.signatures import SignedPolicy
from libs.transparency.quorum import Quorum
from services.cli.evidence.inputs import read_certificate_file, read_policy
from services.cli.evidence.terms import add_policy_terms, ca_file, judge_policy, policy_file
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.policy.revocation_inputs import add_revocation_options, counted_revocations
from services.cli.terminal.checks import print_development
from services.cli.terminal.words import Moment, plain


@dataclass(frozen=True, slots=True)
class Grounds:
    """What was given to judge by."""

    signed: SignedPolicy
    source: Path
    """Where the policy is from."""
    compose: Path | None
    """The app-compose whose operators must have signed it, if one was given."""
    mesh_ca: bytes
    """A certificate, DER."""
    revocations: RevocationSet
    quorum: Quorum

    @property
    def policy(self) -> Policy:
        """The policy as it counts while these revocations are known."""
        return self.signed.policy.under(self.revocations)

    def require_policy(self, now: int) -> str:
        """Say by whose word the policy is judged. Raises why it is not in force at `now`, `InputUnreadable` or
        `ComposeMalformed`.
        """
        words, refusal = judge_policy(self.signed, self.compose, now)
        if refusal is not None:
            raise refusal
        return words


def add_grounds(parser: argparse.ArgumentParser, now_help: str) -> None:
    """Add the flags that say what a kept file is judged by, and how that is told."""
    add_policy_terms(parser, now_help=now_help)
    add_revocation_options(parser)
    add_witness_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")


def read_grounds(args: argparse.Namespace) -> Grounds:
    """Return what was given. Raises what keeps some of it from being read, or from counting at all."""
    source = policy_file(args)
    signed = read_policy(source)
    mesh_ca, quorum = read_certificate_file(ca_file(args)), read_quorum(args)
    revocations = RevocationSet().union(counted_revocations(args, signed.policy.trust_domain))
    return Grounds(signed, source, args.compose, mesh_ca, revocations, quorum)


def print_grounds(grounds: Grounds, signatures: str, now: int, console: Console) -> None:
    """Print for people what a file was judged by. `signatures` is what `require_policy` said."""
    policy = grounds.signed.policy
    print_development(policy.development_roots, console)
    for line in (
        f"policy    version {policy.version} of {policy.trust_domain}, from {grounds.source}",
        f"          {signatures}",
        f"revoked   {grounds.revocations.number} revocations counted",
        f"as of     {Moment(now)}, by the word of whoever kept it unless --now was given",
    ):
        console.print(Text(plain(line)), soft_wrap=True)
