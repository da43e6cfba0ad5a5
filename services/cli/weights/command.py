"""It is responsible for `teemesh weights`: what a model's files are called in policy, evidence and receipts.

manifest  hash the files, and say or write their manifest: policy lists its digest
verify    hash them again and hold them against a manifest, their maker's signature or both: 0 the same, 1 refused
seal      encrypt them to a key of the KMS, which nodes of one measurement alone are given
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from libs.errors import Code, MeshError
from libs.weights import Manifest, WeightsDiffer, manifest, measure, read_manifest, require_same, signature
from libs.weights.age import seal
from libs.weights.signature import require_signed, verify_signature
from services.cli.terminal.inputs import InputUnreadable, read_bounded_input, refuse_existing, write_output
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable
from services.cli.terminal.words import plain

_MAX_KEY = 64 << 10


class NothingToHoldAgainst(MeshError):
    """The command was given nothing that says what the files should be."""

    code = Code.INVALID_ARGUMENT
    reason = "NOTHING_TO_HOLD_AGAINST"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh weights`."""
    parser = subparsers.add_parser("weights", help="what a model's files are called in policy, evidence and receipts")
    commands = parser.add_subparsers(dest="weights_command", required=True)
    making = commands.add_parser("manifest", help="hash a model's files; print the digest that policy lists")
    making.add_argument("path", type=Path, metavar="PATH", help="a file, or a folder with all its files")
    making.add_argument("--out", type=Path, metavar="FILE", help="write the manifest here; must not exist")
    making.set_defaults(run=_run_manifest)
    sealing = commands.add_parser("seal", help="encrypt a model's files to a key of the KMS")
    sealing.add_argument("path", type=Path, metavar="PATH", help="a file, or a folder with all its files")
    sealing.add_argument("--key", type=Path, required=True, metavar="PEM", help="as `teemesh kms public-key` prints it")
    sealing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="is made; must not exist")
    sealing.set_defaults(run=_run_seal)
    verifying = commands.add_parser("verify", help="hold a model's files against what they should be")
    verifying.add_argument("path", type=Path, metavar="PATH", help="a file, or a folder with all its files")
    verifying.add_argument("--manifest", type=Path, metavar="FILE", help="as `teemesh weights manifest` wrote it")
    verifying.add_argument("--signature", type=Path, metavar="FILE", help="an OpenSSF model signature; needs --key")
    verifying.add_argument("--key", type=Path, metavar="PEM", help="the public key of who must have signed")
    verifying.set_defaults(run=lambda args: usable(_run_verify, args))


def _run_manifest(args: argparse.Namespace) -> int:
    if args.out is not None:
        refuse_existing(args.out)
    found = _measure(args.path)
    if args.out is not None:
        write_output(args.out, found.document + b"\n")
    _say(found)
    return 0


def _run_seal(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    key = _x25519(read_bounded_input(args.key, _MAX_KEY))
    found = _measure(args.path)
    # Beside it, so that it appears whole or not at all.
    with tempfile.TemporaryDirectory(dir=args.out.absolute().parent) as elsewhere:
        draft = Path(elsewhere) / args.out.name
        draft.mkdir()
        asyncio.run(seal(args.path, found, draft, key))
        draft.rename(args.out)
    _say(found)
    return 0


def _x25519(pem: bytes) -> X25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputUnreadable("the key is not a public key in PEM") from error
    if not isinstance(key, X25519PublicKey):
        raise InputUnreadable("weights are sealed to an x25519 key: let policy's rule name that algorithm")
    return key


def _run_verify(args: argparse.Namespace) -> int:
    if (args.signature is None) is not (args.key is None):
        raise NothingToHoldAgainst("--signature needs --key, and --key needs --signature")
    if args.manifest is None and args.signature is None:
        raise NothingToHoldAgainst("say what the files should be: --manifest, or --signature and --key")
    expected = None
    if args.manifest is not None:
        expected = read_manifest(read_bounded_input(args.manifest, manifest.MAX_BYTES))
    bundle = key = b""
    if args.signature is not None:
        bundle = read_bounded_input(args.signature, signature.MAX_BYTES)
        key = read_bounded_input(args.key, _MAX_KEY)
    found = _measure(args.path)
    try:
        if expected is not None:
            require_same(expected, found)
        if args.signature is not None:
            require_signed(found, verify_signature(bundle, key), _name_below(args.signature, args.path))
    except (WeightsDiffer, signature.SignatureWrong) as refusal:
        sys.stderr.write(f"teemesh: {refusal.reason}: {plain(str(refusal))}\n")
        return REFUSED
    _say(found)
    return ACCEPTED


def _measure(path: Path) -> Manifest:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("hashing", total=None)
        measured = asyncio.run(measure(path, progress=lambda done, of: bar.update(task, completed=done, total=of)))
    return measured.manifest


def _say(found: Manifest) -> None:
    size = sum(file.size for file in found.files)
    Console().out(f"{found.digest.hex()}  {len(found.files)} files, {size} bytes", highlight=False)


def _name_below(path: Path, folder: Path) -> str | None:
    """Return the name in the folder's manifest of a file that lies in it."""
    resolved, root = path.resolve(), folder.resolve()
    return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else None
