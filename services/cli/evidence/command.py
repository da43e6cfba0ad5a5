"""It is responsible for `teemesh evidence`: what evidence states, whether it passes each step, and getting some.

show      say in words what a file states, nothing of it verified
appraise  judge it under a policy, step by step, with the values compared
fetch     get the evidence of a running mesh's services, or a past appraisal
watch     say which appraisals a running mesh makes
repeat    make a past appraisal again, offline, and say whether its record comes out the same

Exit status of `show`, `appraise` and `repeat`: 0 when all is well, 1 when evidence is refused or the record is another,
2 when what was given cannot be judged, or not be judged by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from libs.errors import MeshError
from libs.policy.document import Policy
from services.cli.evidence.appraisal import Examination, Refused, examine_certificate, examine_document
from services.cli.evidence.description import describe
from services.cli.evidence.fetch import fetch_appraisal, fetch_by_digest, fetch_by_role
from services.cli.evidence.file import CertificateFile, EvidenceFile, QuoteFile, advice, digest_of
from services.cli.evidence.inputs import read_evidence, read_policy
from services.cli.evidence.repeat import print_repetition, repeat_bundle
from services.cli.evidence.report import Judged, print_judged, print_sections
from services.cli.evidence.terms import (
    PIN_ADVICE,
    add_terms,
    certificate_terms,
    digest,
    document_terms,
    is_unpinned,
    judge_policy,
    policy_file,
    refuse_certificate_flags,
)
from services.cli.evidence.watch import show_appraisals
from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.mesh.ports import HOST, read_ports
from services.cli.mesh.roster import SERVICES
from services.cli.mesh.status import Access, read_mesh
from services.cli.terminal.inputs import InputUnreadable, refuse_existing, write_output
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, say_unusable, usable

_BINDING = 5
_MAX_SEQUENCE = 2**64 - 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh evidence`."""
    parser = subparsers.add_parser("evidence", help="read, appraise and fetch evidence, repeat past appraisals")
    commands = parser.add_subparsers(dest="evidence_command", required=True)
    _add_show(commands.add_parser("show", help="say what evidence states, without verifying it"))
    _add_appraise(commands.add_parser("appraise", help="judge evidence under a policy, step by step"))
    _add_fetch(commands.add_parser("fetch", help="get evidence, or a past appraisal, from a running mesh"))
    _add_watch(commands.add_parser("watch", help="say which appraisals a running mesh makes, with their records"))
    _add_repeat(commands.add_parser("repeat", help="make a past appraisal again, offline"))


def _add_file(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("file", type=Path, help="an evidence document, a dstack RA-TLS certificate, or a TDX quote")
    _add_json(parser, run)


def _add_json(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=lambda args: usable(run, args))


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_file(parser, _run_show)


def _add_appraise(parser: argparse.ArgumentParser) -> None:
    _add_file(parser, _run_appraise)
    add_terms(parser)


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    add_state_option(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--role", choices=SERVICES, help="what this service proves itself with now")
    which.add_argument("--digest", type=digest, metavar="HEX", help="this document, also of earlier days")
    which.add_argument("--record", type=digest, metavar="HEX", help="the past appraisal whose record this names")
    parser.add_argument("--out", type=Path, required=True, help="the document, or the bundle; must not exist")
    parser.set_defaults(run=_run_fetch)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    add_state_option(parser)
    parser.add_argument("--count", type=_positive, metavar="N", help="end after so many; default: at Ctrl-C")
    parser.add_argument("--after", type=_positive, default=0, metavar="N", help="go on after this number of a line")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=_run_watch)


def _add_repeat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what fetch --record wrote")
    _add_json(parser, _run_repeat)


def _run_show(args: argparse.Namespace) -> int:
    file = read_evidence(args.file)
    try:
        sections = describe(file)
    except MeshError as refusal:
        if (remedy := advice(file, refusal)) is None:
            raise
        return say_unusable(refusal, remedy)
    if args.json:
        print(json.dumps({"verified": False, **{section.key: section.to_json() for section in sections}}, indent=2))
    else:
        print_sections(sections, Console())
    return ACCEPTED


def _run_appraise(args: argparse.Namespace) -> int:
    file = read_evidence(args.file)
    source = policy_file(args)
    signed = read_policy(source)
    now = int(time.time()) if args.now is None else args.now
    signatures, policy_refusal = judge_policy(signed, args.compose, now)
    examination, binding, remedies = _examine(file, args, signed.policy, now)
    judged = Judged(
        digest=digest_of(file),
        now=now,
        policy=signed.policy,
        policy_source=str(source),
        signatures=signatures,
        policy_refusal=policy_refusal,
        binding=binding,
        examination=examination,
        advice=remedies,
    )
    if args.json:
        print(json.dumps(judged.to_json(), indent=2))
    else:
        print_judged(judged, Console())
    return ACCEPTED if judged.holds else REFUSED


def _examine(
    file: EvidenceFile, args: argparse.Namespace, policy: Policy, now: int
) -> tuple[Examination, str, tuple[str, ...]]:
    """Return the examination, in words what step 5 compares with, and what to do about a refusal."""
    if isinstance(file, QuoteFile):
        raise InputUnreadable("a quote by itself proves nothing about a service: it can be shown, not appraised")
    if isinstance(file, CertificateFile):
        terms, binding = certificate_terms(args, policy, now)
        examination = examine_certificate(file.der, policy, terms)
        unpinned = False
    else:
        refuse_certificate_flags(args)
        document, binding = document_terms(args, policy, now)
        examination = examine_document(file.data, policy, document)
        unpinned = is_unpinned(document)
    return examination, binding, tuple(_remedies(file, examination, policy, unpinned))


def _remedies(file: EvidenceFile, examination: Examination, policy: Policy, unpinned: bool) -> list[str]:
    outcome = examination.outcome
    if not isinstance(outcome, Refused):
        return []
    refusal, role = outcome.refusal, outcome.role
    remedies = [words for words in (advice(file, refusal),) if words is not None]
    if unpinned and examination.steps[-1].number == _BINDING:
        remedies.append(PIN_ADVICE)
    if role is not None and role not in policy.roles:
        remedies.append(f"the policy grants nothing to role {role}: another --role, or another --policy")
    return remedies or [f"docs/evidence.md says what to do about {refusal.reason}"]


def _run_fetch(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    access = _access(args)
    if args.record is not None:
        data = asyncio.run(fetch_appraisal(access, args.record))
        what = f"from the archive, record {args.record.hex()}, not repeated"
    else:
        fetching = fetch_by_role(access, args.role) if args.digest is None else fetch_by_digest(access, args.digest)
        fetched = asyncio.run(fetching)
        data, what = fetched.document, f"from {fetched.source}, digest {fetched.digest.hex()}, not appraised"
    write_output(args.out, data)
    print(f"{args.out}: {len(data)} bytes {what}")
    return ACCEPTED


def _run_watch(args: argparse.Namespace) -> int:
    watching = show_appraisals(_access(args), Console(), after=args.after, count=args.count, as_json=args.json)
    asyncio.run(watching)
    return ACCEPTED


def _run_repeat(args: argparse.Namespace) -> int:
    repetition = repeat_bundle(args.bundle)
    if args.json:
        print(json.dumps(repetition.to_json(), indent=2))
    else:
        print_repetition(repetition, Console())
    return ACCEPTED if repetition.is_same else REFUSED


def _access(args: argparse.Namespace) -> Access:
    layout = layout_of(args)
    if not layout.mesh_file.exists():
        raise InputUnreadable(f"no mesh serves from {layout.root}: start one with teemesh up")
    addresses = {role: f"{HOST}:{port}" for role, port in read_ports(layout.ports).items()}
    return read_mesh(layout.mesh_file, addresses)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= _MAX_SEQUENCE):
        raise argparse.ArgumentTypeError("give a positive number")
    return int(text)
