"""It is responsible for `teemesh ledger prove` and `check-proof`: an entry's proof in a file, and what it shows.

Checking needs no mesh: the file, the log's verifier key and, where witnesses are asked for, theirs. A COSE receipt
names no leaf and no witness, so its leaf data lies beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from pathlib import Path

from rich.console import Console
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.rpc.errors import remote_errors
from libs.transparency import cose_receipt, proof_file
from libs.transparency import leaf as leaves
from libs.transparency.cose_receipt import CoseReceipt
from libs.transparency.note import VerifierKey
from libs.transparency.quorum import NOBODY, Quorum, WitnessesTooFew
from services.cli.mesh.layout import add_state_option
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import ServiceAccess, read_service_access
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.terminal.inputs import read_input, refuse_existing, write_output

_CALL_SECONDS = 10.0


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands below `teemesh ledger`."""
    prove = commands.add_parser("prove", help="write a proof that the log has an entry")
    add_state_option(prove)
    prove.add_argument("entry", type=_entry, metavar="ENTRY_ID|INDEX", help="64 hexadecimal digits, or a leaf index")
    prove.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: INDEX.tlog-proof")
    prove.add_argument("--cose", action="store_true", help="as a COSE receipt, and its leaf data in FILE.leaf")
    add_witness_options(prove)
    prove.set_defaults(run=_run_prove)
    check = commands.add_parser("check-proof", help="check a proof offline")
    check.add_argument("proof", type=Path, metavar="FILE")
    check.add_argument("--vkey", required=True, help="the log's verifier key; mesh.json has it as ledger_vkey")
    add_witness_options(check)
    check.add_argument("--leaf", type=Path, metavar="FILE", help="leaf data: the proof is a COSE receipt")
    check.set_defaults(run=_run_check)


async def fetch_proof(access: ServiceAccess, entry: int | bytes) -> bytes:
    """Return the proof that the ledger gives, unverified. Raises the ledger's refusals."""
    if isinstance(entry, int):
        request = ledger_pb2.GetTlogProofRequest(index=entry)
    else:
        request = ledger_pb2.GetTlogProofRequest(entry_id=entry)
    async with access.channel() as channel:
        with remote_errors():
            response = await ledger_pb2_grpc.LedgerServiceStub(channel).GetTlogProof(request, timeout=_CALL_SECONDS)
    return bytes(response.proof)


async def fetch_receipt(access: ServiceAccess, entry: int | bytes) -> tuple[bytes, bytes]:
    """Return the COSE receipt that the ledger gives, and the leaf data, unverified. Raises the ledger's refusals."""
    if isinstance(entry, int):
        request = ledger_pb2.GetCoseReceiptRequest(index=entry)
    else:
        request = ledger_pb2.GetCoseReceiptRequest(entry_id=entry)
    async with access.channel() as channel:
        with remote_errors():
            response = await ledger_pb2_grpc.LedgerServiceStub(channel).GetCoseReceipt(request, timeout=_CALL_SECONDS)
    return bytes(response.receipt), bytes(response.leaf_data)


def check_receipt(data: bytes, leaf_data: bytes, vkey: str) -> list[str]:
    """Return what a COSE receipt shows, line by line. Raises what refuses it."""
    key = VerifierKey.parse(vkey)
    root = cose_receipt.verify(data, leaf_data, key)
    leaf = leaves.parse(leaf_data)
    return [
        f"an entry of {key.name}: {leaf.kind.name.lower()}, number {leaf.issuer_seq} of its issuer",
        f"issuer {leaf.issuer.hex()}",
        f"commitment {leaf.commitment.hex()}",
        f"in a tree with root {root.hex()}, signed by the log",
    ]


def check_proof(data: bytes, vkey: str, quorum: Quorum = NOBODY) -> list[str]:
    """Return what a proof shows, line by line. Raises what refuses it, `QuorumNotReached` among it."""
    proven = proof_file.verify(data, VerifierKey.parse(vkey), quorum.keys, quorum.needed)
    leaf, tree = proven.leaf, proven.checkpoint
    return [
        f"entry {proven.index} of {tree.origin}: {leaf.kind.name.lower()}, number {leaf.issuer_seq} of its issuer",
        f"issuer {leaf.issuer.hex()}",
        f"commitment {leaf.commitment.hex()}",
        f"in the tree of {tree.size} leaves, root {tree.root.hex()}, signed by the log",
        "cosigned by " + (", ".join(proven.witnesses) or "none that was asked for"),
    ]


def _run_prove(args: argparse.Namespace) -> int:
    mesh = MeshReader(args.state / "mesh.json")
    access, vkey, quorum = read_service_access(mesh, "ledger"), mesh.text("ledger_vkey"), read_quorum(args)
    # What the ledger gives out is not kept before it shows what it says.
    if args.cose:
        _refuse_witnesses(args)
        data, leaf_data = asyncio.run(fetch_receipt(access, args.entry))
        shown = check_receipt(data, leaf_data, vkey)
        output: Path = args.output or Path(f"{CoseReceipt.parse(data).index}.cose")
        files = {output: data, output.with_name(f"{output.name}.leaf"): leaf_data}
    else:
        data = asyncio.run(fetch_proof(access, args.entry))
        shown = check_proof(data, vkey, quorum)
        output = args.output or Path(f"{proof_file.ProofFile.parse(data).index}.tlog-proof")
        files = {output: data}
    for path in files:
        refuse_existing(path)
    for path, content in files.items():
        write_output(path, content)
    _say([*shown[:1], *(f"written to {path}" for path in files)])
    return 0


def _run_check(args: argparse.Namespace) -> int:
    data = read_input(args.proof)
    if args.leaf is None:
        _say(check_proof(data, args.vkey, read_quorum(args)))
        return 0
    _refuse_witnesses(args)
    _say(check_receipt(data, read_input(args.leaf), args.vkey))
    return 0


def _refuse_witnesses(args: argparse.Namespace) -> None:
    if args.witness or args.quorum:
        raise WitnessesTooFew("a COSE receipt carries no cosignatures: take a tlog-proof")


def _say(lines: list[str]) -> None:
    console = Console()
    for line in lines:
        console.out(line, highlight=False)


def _entry(text: str) -> int | bytes:
    if re.fullmatch("[0-9a-f]{64}", text):
        return bytes.fromhex(text)
    if re.fullmatch("[0-9]{1,19}", text):
        return int(text)
    raise argparse.ArgumentTypeError("must be an entry id of 64 hexadecimal digits, or a leaf index")
