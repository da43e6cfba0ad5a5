"""It is responsible for which revocations a command that judges counts: files, and those that a mesh knows now."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from libs.policy.revocation import SignedRevocation, parse_revocation, verify_revocation
from services.cli.evidence.inputs import named
from services.cli.mesh.layout import DEFAULT_STATE
from services.cli.mesh.options import add_timeout_option
from services.cli.policy.revoke import read_revocations
from services.cli.terminal.inputs import read_input


def add_revocation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which revocations count, by default none, and how long a mesh is waited for."""
    parser.add_argument(
        "--revocation",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a signed revocation that counts, or a folder of them; once per file",
    )
    parser.add_argument(
        "--known-revocations", action="store_true", help="count those too that the KMS of --mesh knows now"
    )
    add_timeout_option(parser)


def counted_revocations(args: argparse.Namespace, trust_domain: str) -> list[SignedRevocation]:
    """Whoever signed one is shown, and whether they were an operator then is for the reader: no policy says who was."""
    found = [_read_revocation(path, trust_domain) for given in args.revocation for path in _files(given)]
    if args.known_revocations:
        mesh = args.mesh or DEFAULT_STATE / "mesh.json"
        known = asyncio.run(read_revocations(mesh, args.timeout_seconds)).revocations
        for signed in known:
            verify_revocation(signed, (signed.key,), trust_domain)
        found.extend(known)
    return found


def _files(given: Path) -> list[Path]:
    return sorted(given.glob("*.json")) if given.is_dir() else [given]


def _read_revocation(path: Path, trust_domain: str) -> SignedRevocation:
    data = read_input(path)
    with named(path):
        signed = parse_revocation(data)
        verify_revocation(signed, (signed.key,), trust_domain)
    return signed
