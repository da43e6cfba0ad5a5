"""It is responsible for `teemesh ledger order-prune` and `prune`, and for `restore --pruned`, which undoes it.

Pruning takes two steps: operators order it, and the running ledger logs that; then each member's files are pruned while
that member is stopped, by the ledger's own code in a process of its own. What is in an archive is judged here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from libs import jcs
from libs.audit.log.segments import first_leaf
from libs.errors import Code, MeshError
from libs.policy.orders import ORDER_REASON, PRUNE_LOG, Order, SignedOrder
from libs.policy.prune_orders import Pruning
from libs.process import tethered
from services.cli.ledger.bundle import SEGMENTS, Bundle, open_bundle
from services.cli.ledger.files import LogFolder, add_log_argument, log_folder
from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.mesh.orders import DAY_SECONDS, add_order_options
from services.cli.mesh.reading import MeshReader
from services.cli.terminal.inputs import InputUnreadable, refuse_existing, write_output
from services.cli.terminal.numbers import number_within

_SOURCE_ROOT = Path(__file__).parents[3]
_PRUNING = "services.ledger.pruning"
_MOST_ENTRIES = 10**15
_VALID_DAYS = 7
_CHUNK = 1 << 20


class ArchiveDamaged(MeshError):
    """A file in the bundle is not what its manifest says: make it anew, or bring another copy."""

    code = Code.DATA_LOSS
    reason = "ARCHIVE_DAMAGED"


class PruningFailed(MeshError):
    """The ledger's own code refused, and has said why."""

    reason = "PRUNING_FAILED"


def add_prune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add order-prune and prune."""
    order = commands.add_parser("order-prune", help="draft the order that the log may be pruned")
    add_state_option(order)
    before = number_within(1, _MOST_ENTRIES)
    order.add_argument("--before", type=before, required=True, metavar="N", help="the first entry that stays whole")
    order.add_argument("--reason", required=True, help="why; it stays in the public log for ever, so no names")
    add_order_options(order, valid_days=_VALID_DAYS)
    order.set_defaults(run=_run_order)
    prune = commands.add_parser("prune", help="take the bodies of tenants' old entries out of a stopped ledger's log")
    add_log_argument(prune)
    prune.add_argument(
        "--archive", type=Path, action="append", default=[], metavar="DIR|FILE.tar", help="a bundle; may be repeated"
    )
    prune.set_defaults(run=_run_prune)


def put_back(bundle: Path, folder: LogFolder) -> Sequence[str]:
    """Put the pruned segments that a bundle has back into a stopped ledger's log; return their names.

    Raises `InputUnreadable`, `BundleMalformed`, `PruningFailed`.
    """
    with open_bundle(bundle) as opened:
        names = [name for name in opened.segments() if name in folder.segments() and folder.is_bare(name)]
        for name in names:
            first = first_leaf(name)
            with opened.open_segment(name) as content:
                _pour(content, ["--put-back", str(first)], folder.path)
    return names


def archived(bundle: Bundle) -> Mapping[str, str]:
    """Return the SHA-256 of each segment that a bundle holds, all of it read. Raises `ArchiveDamaged`."""
    for name in bundle.wrong():
        raise ArchiveDamaged(f"{name} is not what the bundle's manifest says: nothing is pruned")
    digests = bundle.manifest.files
    return {name: digests[SEGMENTS + name] for name in bundle.segments()}


def _run_order(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if not ORDER_REASON.fullmatch(args.reason):
        raise InputUnreadable("a reason is printable ASCII, 256 characters at most")
    domain = MeshReader(layout_of(args).mesh_file).text("trust_domain")
    pruning = Pruning(f"{domain}/ledger/1", args.before)
    until = int(time.time()) + args.valid_days * DAY_SECONDS
    write_output(args.out, SignedOrder(Order(domain, PRUNE_LOG, pruning.subject, until, args.reason)).document)
    print(f"{args.out}: to {PRUNE_LOG} {pruning.subject}; operators sign it with teemesh kms approve")
    return 0


def _run_prune(args: argparse.Namespace) -> int:
    folder, archives = log_folder(args), []
    for path in args.archive:
        with open_bundle(path) as bundle:
            archives.append(dict(archived(bundle)))
    done = subprocess.run(
        _command(folder), input=jcs.dumps(archives), stdout=subprocess.PIPE, cwd=_SOURCE_ROOT, check=False
    )
    if done.returncode:
        return done.returncode
    outcome = json.loads(done.stdout)
    print(f"{folder}: {len(outcome['pruned'])} segments pruned" + "".join(f"\n  {each}" for each in outcome["pruned"]))
    for name in outcome["held"]:
        print(f"  {name} stays: a vault in it is under a hold")
    return 0


def _pour(content: BinaryIO, options: Sequence[str], folder: Path) -> None:
    with subprocess.Popen([*_command(folder), *options], stdin=subprocess.PIPE, cwd=_SOURCE_ROOT) as process:
        if process.stdin is None:
            raise RuntimeError("the process was started without a pipe")
        with process.stdin as to:
            try:
                while chunk := content.read(_CHUNK):
                    to.write(chunk)
            except BrokenPipeError:
                pass  # It refused early; its exit status says so.
    if process.returncode:
        raise PruningFailed("a pruned segment was not put back")


def _command(folder: Path) -> list[str]:
    return list(tethered([sys.executable, "-m", _PRUNING, str(folder.absolute())]))
