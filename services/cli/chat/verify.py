"""It is responsible for `teemesh verify`: an exchange that somebody kept, checked again, offline.

Exit status 0: complete; 2: the file cannot be read, or not be judged by what was given; 3: no attested router signed
for it; 4: the receipt is for another request or response; 5: the response has no valid acknowledgement; 6: it is not
proven that a verified node served; 7: it is in no signed tree; 8: the answer broke off or does not open. The lowest
counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.aci import receipt as receipts
from libs.client import exchange_file
from libs.client.checks import Check, Materials, run_checks
from libs.client.commitment import MeshCaUnexpected
from libs.client.standing import Standing, standing
from services.cli.evidence.inputs import named
from services.cli.policy.grounds import Grounds, add_grounds, print_grounds, read_grounds
from services.cli.sessions.checks import check_json
from services.cli.terminal.checks import print_checks
from services.cli.terminal.inputs import read_bounded_input
from services.cli.terminal.verdicts import usable
from services.cli.terminal.words import Json

_WORDS = {
    Standing.COMPLETE: "the response is the router's, a verified node had to serve it, and the log has its receipt",
    Standing.UNATTESTED: "nothing shows that an attested router signed for this response",
    Standing.MISFIT: "the router's receipt is for another request or another response than these",
    Standing.UNLOGGED: "the response has no valid acknowledgement of the log",
    Standing.UNVERIFIED: "it is not proven that a verified node served the response",
    Standing.UNSHOWN: "the receipt was acknowledged, but is not shown in a signed tree",
    Standing.UNREAD: "what came has all its proofs, but the answer broke off, or does not open",
}


_RECEIPT_IS_SIGNED, _ISSUER_IS_THE_ROUTER, _LEDGER_IS_ATTESTED = 3, 9, 10


@dataclass(frozen=True, slots=True)
class Judged:
    """An exchange, and what it was found to be."""

    materials: Materials
    grounds: Grounds
    signatures: str
    """By whose word the policy was judged."""
    checks: Sequence[Check]

    @property
    def standing(self) -> Standing:
        return standing(self.checks)

    @property
    def receipt_id(self) -> str | None:
        """Of the receipt that an attested router signed, if one did. The response's own word for it is a check's."""
        receipt = self.materials.receipt
        signed = any(check.number == _RECEIPT_IS_SIGNED and check.passed for check in self.checks)
        return receipts.parse(receipt).receipt_id if signed and isinstance(receipt, bytes) else None

    def to_json(self) -> dict[str, Json]:
        exchange, policy = self.materials.exchange, self.materials.policy
        return {
            "status": int(self.standing),
            "verdict": self.standing.name.lower(),
            "receipt_id": self.receipt_id,
            "response_hash": exchange.response_hash,
            "now": self.materials.now,
            "policy": {
                "source": str(self.grounds.source),
                "version": policy.version,
                "digest": policy.digest.hex(),
                "signatures": self.signatures,
                "revocations": self.grounds.revocations.number,
                "development_roots": list(policy.development_roots),
            },
            "checks": [check_json(check) for check in self.checks],
        }


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh verify`."""
    parser = subparsers.add_parser("verify", help="check an answer that was kept (chat --save) again, offline")
    parser.add_argument("file", type=Path, metavar="FILE", help="what teemesh chat --save wrote")
    add_grounds(parser, now_help="as of when, unix seconds or RFC 3339; default: when the file was made")
    parser.set_defaults(run=lambda args: usable(_run, args))


def _run(args: argparse.Namespace) -> int:
    judged = judge(args.file, read_grounds(args), args.now)
    if args.json:
        print(json.dumps(judged.to_json(), indent=2))
    else:
        print_judged(judged, Console())
    return int(judged.standing)


def judge(file: Path, grounds: Grounds, now: int | None) -> Judged:
    """Check the exchange in the file, as of `now` or of when it was kept. Raises what keeps it from being read, or from
    being judged by this policy.
    """
    data = read_bounded_input(file, exchange_file.MAX_BYTES)
    with named(file):
        kept = exchange_file.decode(data, grounds.policy, grounds.mesh_ca, grounds.quorum)
    materials = kept if now is None else replace(kept, now=now)
    signatures = grounds.require_policy(materials.now)
    checks = run_checks(materials)
    _require_own_ca(materials, checks)
    return Judged(materials, grounds, signatures, checks)


def _require_own_ca(materials: Materials, checks: Sequence[Check]) -> None:
    """Raise `MeshCaUnexpected` when it is the reader that has another mesh's CA: under the one that the router names,
    its own evidence and the ledger's hold. A router that only names another one than all was signed by is judged.
    """
    if all(check.reason != MeshCaUnexpected.reason for check in checks):
        return
    under_its_own = run_checks(replace(materials, mesh_ca=None))
    if all(under_its_own[number - 1].passed for number in (_ISSUER_IS_THE_ROUTER, _LEDGER_IS_ATTESTED)):
        raise MeshCaUnexpected("all that was kept is another mesh CA's than the one given: give that of this mesh")


def print_judged(judged: Judged, console: Console) -> None:
    """Print for people: by what it was judged, every check, and what they come to."""
    print_grounds(judged.grounds, judged.signatures, judged.materials.now, console)
    print_checks(judged.checks, console)
    found = judged.standing
    word = (found.name, "bold green" if found is Standing.COMPLETE else "bold red")
    console.print(Text.assemble(word, f": {_WORDS[found]}"), soft_wrap=True)
