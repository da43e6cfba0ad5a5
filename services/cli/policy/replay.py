"""It is responsible for `teemesh policy replay`: every admission in the log decided again, as of when it was made.

Exit status: 0 all that can be repeated came out the same, 1 something did not, 2 the log cannot be believed or read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.transparency.checkpoint import Checkpoint
from libs.transparency.note import VerifierKey
from services.cli.decisions.log_copy import Copied, copy_log, read_copy, verify_copy
from services.cli.decisions.log_state import Authorities, InLog
from services.cli.decisions.replay import Replay
from services.cli.decisions.replayed import Replayed, Verdict
from services.cli.evidence.inputs import read_ca, read_compose
from services.cli.mesh.options import add_mesh_options
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import read_service_access
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable
from services.cli.terminal.words import Json, plain

_STYLES = {Verdict.SAME: "bold green", Verdict.DIFFERENT: "bold red", Verdict.NOT_REPEATABLE: "dim"}
_DIGEST_DIGITS = 64
UNTOLD = (
    "The log has no times: a decision is judged as of when its session was established, or its challenge made, under "
    "the version that it names; a revocation counts from the operator's own time on."
)


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh policy replay`."""
    parser.add_argument("log", type=Path, nargs="?", metavar="FILE", help="a copy of the log; default: the mesh's own")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the copy that was read; must not exist")
    parser.add_argument(
        "--evidence", type=Path, metavar="DIR", help="evidence documents as <digest>.json, for certificates of services"
    )
    parser.add_argument("--ca", type=Path, metavar="FILE", help="the mesh CA's certificate; default: mesh.json's")
    parser.add_argument("--vkey", metavar="TEXT", help="the ledger's verifier key; default: mesh.json's")
    parser.add_argument(
        "--compose", type=Path, metavar="FILE", help="an app-compose whose operators began; default: mesh.json's"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    add_mesh_options(parser)
    parser.set_defaults(run=lambda args: usable(_run, args))


def _run(args: argparse.Namespace) -> int:
    if args.out is not None:
        refuse_existing(args.out)
    copied = _copied(args)
    vkey = args.vkey or MeshReader(args.mesh).text("ledger_vkey")
    checkpoint, entries = verify_copy(copied, VerifierKey.parse(vkey))
    if args.out is not None:
        write_output(args.out, copied.encode())
    log = InLog(_authorities(args))
    for entry in entries:
        log.take(entry)
    replayed = Replay(log, _filed(args.evidence)).run()
    if args.json:
        print(json.dumps(_report(checkpoint, log, replayed), indent=2))
    else:
        print_replay(checkpoint, log, replayed, Console())
    return REFUSED if any(each.verdict is Verdict.DIFFERENT for each in replayed) else ACCEPTED


def _copied(args: argparse.Namespace) -> Copied:
    if args.log is not None:
        return read_copy(args.log)
    return asyncio.run(copy_log(read_service_access(MeshReader(args.mesh), "ledger"), args.timeout_seconds))


def _authorities(args: argparse.Namespace) -> Authorities:
    if args.compose is not None:
        anchors = read_compose(args.compose)
        keys, threshold = anchors.operator_keys, anchors.operator_threshold
    else:
        mesh = MeshReader(args.mesh)
        keys, threshold = mesh.keys("operator_public_keys"), mesh.number("operator_threshold")
    ca = args.ca or args.mesh.parent / MeshReader(args.mesh).text("mesh_ca")
    return Authorities(keys, threshold, read_ca(ca))


def _filed(folder: Path | None) -> Mapping[bytes, bytes]:
    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputUnreadable(f"{folder} is no folder")
    named = [path for path in sorted(folder.glob("*.json")) if len(path.stem) == _DIGEST_DIGITS]
    try:
        return {bytes.fromhex(path.stem): read_input(path) for path in named}
    except ValueError as error:
        raise InputUnreadable(f"{folder} has a file whose name is no digest: {error}") from error


def print_replay(checkpoint: Checkpoint, log: InLog, replayed: Sequence[Replayed], console: Console) -> None:
    """Print a line for each decision; the last line says how many came out the same."""
    versions = ", ".join(map(str, sorted(log.policies))) or "none"
    _print(console, f"log       {checkpoint.origin}, {checkpoint.size} entries, root {checkpoint.root.hex()}")
    _print(console, f"policies  versions {versions}; {len(log.revocations)} revocations")
    for each in replayed:
        words = f" {each.index:>6} {each.decision} {each.spiffe_id}: {each.recorded}"
        words += f" under version {each.policy_version}" if each.policy_version is not None else ""
        words += f", by {each.rule}" if each.rule is not None else ""
        if each.verdict is Verdict.DIFFERENT:
            words += f"; made again: {each.repeated}"
        words += f" ({each.note})" if each.note else ""
        _print(console, (f"{each.verdict.value:<14}", _STYLES[each.verdict]), plain(words))
    _print(console, UNTOLD)
    counts = Counter(each.verdict for each in replayed)
    _print(console, ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict))


def _report(checkpoint: Checkpoint, log: InLog, replayed: Sequence[Replayed]) -> dict[str, Json]:
    return {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "policy_versions": sorted(log.policies),
        "revocations": len(log.revocations),
        "untold": UNTOLD,
        "decisions": [
            {
                "index": each.index,
                "decision": each.decision,
                "spiffe_id": each.spiffe_id,
                "policy_version": each.policy_version,
                "recorded": each.recorded,
                "verdict": each.verdict.value,
                "repeated": each.repeated,
                "rule": each.rule,
                "note": each.note or None,
            }
            for each in replayed
        ],
    }


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), soft_wrap=True)
