"""It is responsible for `teemesh ledger verify`: a log held against itself, its signed heads, and what others hold.

The reading shares no code with the ledger. Exit status 0: nothing is wrong; 2: the last write was cut short; 3: damage;
4: less than was promised; 5: a signature, key or policy does not bear the log out; 6: two histories; 7: a number is
missing or stands twice. The worst one counts; 1 is for what could not be read at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console

from libs.audit.log.findings import Status
from libs.audit.log.notes import Key, NoteUnreadable, read_checkpoint
from libs.audit.log.promises import CHECKPOINT_WITNESSED, Held
from libs.audit.log.reading import Depth
from libs.audit.log.split_view import SplitView, read_split_view
from libs.audit.log.tenants import TAG_KEY_SIZE, TagKeyUnreadable
from services.cli.evidence.inputs import read_certificate_file, read_policy
from services.cli.ledger.bundle import is_bundle
from services.cli.ledger.comparison import Examined, compare, examine
from services.cli.ledger.quorum import judge_witnessed
from services.cli.ledger.served import is_url
from services.cli.ledger.subject import Asked, Auditor, Opening, read_head
from services.cli.ledger.verdict import members, print_json, print_reading, print_split_view
from services.cli.mesh.options import add_timeout_option
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh ledger verify`."""
    parser.add_argument("log", nargs="?", metavar="PATH|URL", help="the log's folder, or where it is served")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--full", action="store_true", help="every byte; the default")
    depth.add_argument("--tiles", action="store_true", help="the tree alone, without tenants' bodies")
    depth.add_argument("--sample", type=_count, metavar="N", help="the tree, and N entries chosen at random")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="a signed policy: were the writers let in rightly?")
    parser.add_argument("--mesh-ca", type=Path, metavar="FILE", help="the mesh CA's certificate; with --policy")
    parser.add_argument("--key", action="append", default=[], help="a checkpoint key (C2SP text)")
    parser.add_argument("--from", type=Path, dest="old", metavar="FILE", help="a signed head seen earlier")
    parser.add_argument("--against", metavar="OTHER", help="another copy, where it is served, or a signed head")
    parser.add_argument("--tag-key", type=Path, metavar="FILE", help="a tenant's tag key, hexadecimal")
    add_witness_options(parser)
    parser.add_argument("--evidence", type=Path, metavar="FILE", help="write evidence of two histories; read it alone")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="authority of the HTTPS server; default: the system's")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    add_timeout_option(parser)
    parser.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace, opening: Opening | None = None) -> int:
    """Verify; returns the exit status. Raises what keeps a file or server from being read."""
    console = Console()
    if args.log is None:
        return _verify_evidence(args, console)
    if args.evidence is not None:
        refuse_existing(args.evidence)
    examined = _examine(args, opening or Opening(args.ca, args.timeout_seconds))
    reading = examined.reading
    if args.json:
        print_json(members(reading), console)
    else:
        print_reading(reading, console)
    if args.evidence is not None and examined.evidence is not None:
        write_output(args.evidence, examined.evidence.encode())
    return int(reading.findings.worst)


def _examine(args: argparse.Namespace, opening: Opening) -> Examined:
    quorum = read_quorum(args)
    outside = [] if args.old is None else [read_head(args.old)]
    is_head = args.against is not None and _is_head(args.against)
    if is_head:
        outside.append(read_head(Path(args.against)))
    asked = Asked(
        depth=Depth.TREE if args.tiles else Depth.FULL,
        sample=args.sample,
        keys=_keys(args),
        outside=outside,
        auditor=_auditor(args),
        tag_key=None if args.tag_key is None else _read_tag_key(args.tag_key),
    )
    with ExitStack() as opened:
        subject = opened.enter_context(opening.subject(args.log))
        note = subject.witnessed() if quorum.needed else None
        if note is not None and is_url(args.log):
            # Files are read with this head as it is; of what is served, nobody else would look at it.
            with suppress(NoteUnreadable):
                outside.append(Held(CHECKPOINT_WITNESSED, None, read_checkpoint(note)))
        if args.against is None or is_head:
            examined = examine(subject, asked)
        else:
            other = opened.enter_context(opening.subject(args.against))
            examined = compare(subject, other, args.against, asked)
    if quorum.needed:
        judge_witnessed(note, quorum, examined.reading)
    return examined


def _verify_evidence(args: argparse.Namespace, console: Console) -> int:
    """Judge a file of evidence alone: it needs no log."""
    if args.evidence is None:
        raise InputUnreadable("name a log, or a file of evidence with --evidence")
    view: SplitView = read_split_view(read_input(args.evidence))
    known: Sequence[Key] | None = _keys(args) or None
    signers = view.verify(known)
    print_split_view(view, signers, console, is_known=known is not None, as_json=args.json)
    return int(Status.DIVERGED)


def _auditor(args: argparse.Namespace) -> Auditor | None:
    if (args.policy is None) != (args.mesh_ca is None):
        raise InputUnreadable("a policy judges certificates by the mesh CA: give --policy and --mesh-ca together")
    return None if args.policy is None else Auditor(read_policy(args.policy), read_certificate_file(args.mesh_ca))


def _is_head(name: str) -> bool:
    return not is_url(name) and Path(name).is_file() and not is_bundle(Path(name))


def _keys(args: argparse.Namespace) -> tuple[Key, ...]:
    return tuple(Key.read(text) for text in args.key)


def _read_tag_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(read_input(path).decode("ascii").strip())
    except ValueError as error:
        raise TagKeyUnreadable(f"{path} is no tag key: {2 * TAG_KEY_SIZE} hexadecimal digits") from error
    if len(key) != TAG_KEY_SIZE:
        raise TagKeyUnreadable(f"{path} is no tag key: {2 * TAG_KEY_SIZE} hexadecimal digits")
    return key


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least one entry")
    return value
