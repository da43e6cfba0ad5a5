"""It is responsible for `teemesh sessions`: the attested sessions that receipts cite, and what one of them proves.

list    list the sessions that the registry keeps, by its word
show    say what a session states, after checking that it is the one of its id
verify  appraise the evidence inside again, offline: 0 verified, 1 refused, 2 when it cannot be judged
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from pathlib import Path

from rich.console import Console
from teemesh.registry.v1 import registry_pb2 as pb

from libs.aci.session import session_id, verify_session
from libs.audit.session import SessionTerms
from libs.errors import MeshError
from libs.policy.revocation import RevocationSet
from services.cli.evidence.inputs import named, read_policy
from services.cli.evidence.terms import add_policy_terms, ca_of, judge_policy, policy_file
from services.cli.mesh.layout import DEFAULT_STATE
from services.cli.mesh.options import add_mesh_options
from services.cli.mesh.registry_access import RegistryAccess, read_registry_access, spiffe_id_of
from services.cli.policy.revocation_inputs import add_revocation_options, counted_revocations
from services.cli.sessions.checks import SessionProof, check_session
from services.cli.sessions.report import SessionReport, print_session, print_sessions, print_statements, summary_json
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable

_ID = re.compile(r"[0-9a-f]{64}")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh sessions`."""
    parser = subparsers.add_parser("sessions", help="see and verify the attested sessions that receipts cite")
    commands = parser.add_subparsers(dest="sessions_command", required=True)
    listing = commands.add_parser("list", help="list the sessions that the registry keeps, the newest first")
    listing.add_argument("--node", metavar="NODE", help="only those of the node of this SPIFFE ID or name")
    listing.add_argument("--model", default="", help="only those of nodes that served it")
    listing.add_argument("--current", action="store_true", help="only those that a listed node has now")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    add_mesh_options(listing)
    listing.set_defaults(run=_run_list)
    showing = commands.add_parser("show", help="say what a session states")
    showing.add_argument("session", metavar="FILE|ID", help="a session's document, or its id in the registry")
    showing.add_argument("--out", type=Path, metavar="FILE", help="write the document here too; must not exist")
    add_mesh_options(showing)
    showing.set_defaults(run=_run_show)
    _add_verify(commands.add_parser("verify", help="appraise the evidence in a session again"))


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="FILE|ID", help="a session's document, or its id in the registry")
    parser.add_argument("--id", type=_id, metavar="HEX", help="the id that a file must have, as a receipt cites it")
    add_policy_terms(parser, now_help="as of when, unix seconds or RFC 3339; default: when it was established")
    add_revocation_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=lambda args: usable(_run_verify, args))


def _run_list(args: argparse.Namespace) -> int:
    access = read_registry_access(args.mesh)
    spiffe_id = "" if args.node is None else spiffe_id_of(args.node, access.trust_domain)
    summaries = asyncio.run(_list(access, args.timeout_seconds, spiffe_id, args.model, args.current))
    console = Console()
    if args.json:
        for summary in summaries:
            console.out(json.dumps(summary_json(summary)), highlight=False)
        return 0
    print_sessions(summaries, console)
    return 0


def _run_show(args: argparse.Namespace) -> int:
    if args.out is not None:
        refuse_existing(args.out)
    document, identifier = _document(args.session, None, args.mesh, args.timeout_seconds)
    print_statements(verify_session(document, identifier), Console())
    if args.out is not None:
        write_output(args.out, document)
    return 0


def _run_verify(args: argparse.Namespace) -> int:
    mesh = args.mesh or DEFAULT_STATE / "mesh.json"
    document, identifier = _document(args.session, args.id, mesh, args.timeout_seconds)
    source = policy_file(args)
    signed = read_policy(source)
    now = args.now if args.now is not None else _established(document)
    signatures, refusal = judge_policy(signed, args.compose, now)
    revocations = RevocationSet().union(counted_revocations(args, signed.policy.trust_domain))
    terms = SessionTerms(signed.policy.under(revocations), ca_of(args), now)
    proof = SessionProof(document, identifier, terms, refusal, signatures)
    report = SessionReport(proof, check_session(proof), str(source), revocations.number)
    if args.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_session(report, Console())
    return ACCEPTED if report.holds else REFUSED


def _document(given: str, expected: str | None, mesh: Path, timeout_seconds: float) -> tuple[bytes, str]:
    """Return a session's bytes and the id that they must have. Raises `InputUnreadable` and the registry's refusals."""
    path = Path(given)
    if _ID.fullmatch(given) and not path.exists():
        if expected not in (None, given):
            raise InputUnreadable("--id names another session than the one that was asked for")
        return asyncio.run(_fetch(read_registry_access(mesh), given, timeout_seconds)), given
    data = read_input(path)
    if expected is not None:
        return data, expected
    with named(path):
        return data, session_id(data)


def _established(document: bytes) -> int:
    """A document that cannot be read says no time; the first check says why, whatever the time."""
    try:
        return verify_session(document, session_id(document)).established_at
    except MeshError:
        return int(time.time())


async def _list(
    access: RegistryAccess, timeout_seconds: float, spiffe_id: str, model: str, current: bool
) -> list[pb.SessionSummary]:
    return await access.ask(lambda registry: registry.sessions(spiffe_id, model, current), timeout_seconds)


async def _fetch(access: RegistryAccess, identifier: str, timeout_seconds: float) -> bytes:
    return await access.ask(lambda registry: registry.session(bytes.fromhex(identifier)), timeout_seconds)


def _id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise argparse.ArgumentTypeError("give 64 lower-case hexadecimal digits")
    return text
