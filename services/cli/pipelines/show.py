"""It is responsible for `teemesh pipeline show`: the stages that led to some weights, as the log has them, unjudged."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from libs.aci import receipt as receipts
from libs.client import exchange_file, lineage_file
from libs.client.lineage import Lineage, served_weights
from libs.client.logged import id_of
from libs.errors import Code, MeshError
from libs.events.pipeline import Artifact, parse_stage
from libs.events.records import parse_entry
from libs.policy.signatures import parse_signed
from services.cli.evidence.inputs import named
from services.cli.evidence.terms import digest
from services.cli.mesh.options import add_mesh_options
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import read_service_access
from services.cli.pipelines.gathering import gather
from services.cli.pipelines.subject import add_subject
from services.cli.terminal.inputs import read_bounded_input, refuse_existing, write_output
from services.cli.terminal.words import plain


class LedgerTooSlow(MeshError):
    """The ledger did not show everything in time."""

    code = Code.DEADLINE_EXCEEDED
    reason = "LEDGER_TOO_SLOW"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh pipeline show`."""
    parser = commands.add_parser("show", help="find the stages that led to some weights; nothing is judged")
    add_subject(parser)
    parser.add_argument("--stage", type=digest, metavar="ENTRY", help="which one, where several made the same weights")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep them with their proofs; must not exist")
    add_mesh_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.save is not None:
        refuse_existing(args.save)
    mesh = MeshReader(args.mesh)
    weights = args.weights if args.answer is None else _weights_of(args.answer, mesh)
    access = read_service_access(mesh, "ledger")
    try:
        lineage = asyncio.run(gather(access, weights, args.stage, args.timeout_seconds))
    except TimeoutError as error:
        raise LedgerTooSlow("not everything was shown in time: ask again, or give --timeout-seconds") from error
    console = Console()
    for line in described(lineage):
        console.out(line, highlight=False)
    if args.save is not None:
        write_output(args.save, lineage_file.encode(lineage))
        console.out(f"kept in {args.save}", highlight=False)
    return 0


def described(lineage: Lineage) -> Iterator[str]:
    """Yield what stages say of themselves, line by line. Raises what cannot be read."""
    for number, logged in enumerate(lineage.stages, 1):
        entry = parse_entry(logged.canonical)
        stage = parse_stage(entry.body)
        yield f"{number}. {stage.step.value} {plain(stage.name)!r}, leaf {logged.index}, entry {id_of(entry).hex()}"
        yield from (f"     took {_artifact(taken)}" for taken in stage.inputs)
        yield from (f"     made {_artifact(made)}" for made in stage.outputs)
        if stage.privacy is not None:
            yield f"     spent {stage.privacy}"
    yield "nothing of this was judged: teemesh pipeline verify does"


def _artifact(artifact: Artifact) -> str:
    made_by = "" if artifact.made_by is None else f", made by {artifact.made_by.hex()}"
    return f"{artifact.sha256.hex()} {plain(artifact.name)!r}{made_by}"


def _weights_of(path: Path, mesh: MeshReader) -> bytes:
    """Return what the receipt of a kept answer says. Raises what keeps it from being read, and `WeightsNotNamed`."""
    with named(path):
        kept = exchange_file.decode(
            read_bounded_input(path, exchange_file.MAX_BYTES), parse_signed(mesh.file("policy")).policy, None
        )
        if isinstance(kept.receipt, MeshError):
            raise kept.receipt
        return served_weights(receipts.parse(kept.receipt))
