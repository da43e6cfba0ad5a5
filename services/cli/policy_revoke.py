"""It is responsible for `teemesh policy revoke` and `revocations`: one operator withdraws something, anyone reads what.

The revocation is signed here, with the operator's own key; the KMS only decides whether it counts.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from teemesh.kms.v1 import kms_pb2

from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.revocation import (
    Revocation,
    RevocationKind,
    SignedRevocation,
    parse_revocation,
    sign_revocation,
    verify_revocation,
)
from libs.policy.signatures import parse_signed
from libs.rpc.errors import remote_errors
from services.cli.kms_access import kms_stub
from services.cli.mesh_reading import MeshReader
from services.cli.operators import load_key
from services.cli.service_access import read_service_access


class RevocationNotConfirmed(MeshError):
    """The KMS answered about another revocation than the one that was sent."""

    code = Code.ABORTED
    reason = "REVOCATION_NOT_CONFIRMED"


@dataclass(frozen=True, slots=True)
class Known:
    """What the KMS says is revoked, and the policy in force, which may lift some of it."""

    policy: Policy
    revocations: tuple[SignedRevocation, ...]


def add_revoke(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh policy revoke`."""
    parser.add_argument("kind", choices=[str(kind) for kind in RevocationKind])
    parser.add_argument(
        "value",
        help="compose hash, device id or GPU UEID, CPU family, SHA-256 of a key's SPKI, SPIFFE ID, or tenant id",
    )
    parser.add_argument("--reason", required=True, metavar="TEXT", help="for people; it goes into the log")
    parser.add_argument("--operator-key", type=Path, required=True, metavar="FILE", help="the operator's key file")
    _add_mesh(parser)
    parser.set_defaults(run=_run_revoke)


def add_revocations(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh policy revocations`."""
    _add_mesh(parser)
    parser.set_defaults(run=_run_revocations)


def _add_mesh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mesh", type=Path, default=Path(".teemesh/mesh.json"), help="default: %(default)s")
    parser.add_argument("--timeout-seconds", type=float, default=30.0)


def _run_revoke(args: argparse.Namespace) -> int:
    trust_domain = MeshReader(args.mesh).text("trust_domain")
    revocation = Revocation(
        trust_domain, RevocationKind(args.kind), args.value, args.reason, time_ms=int(time.time() * 1000)
    )
    signed = sign_revocation(revocation, load_key(args.operator_key))
    number = asyncio.run(revoke(signed, args.mesh, args.timeout_seconds))
    print(f"revoked: {revocation.kind} {revocation.value}, id {revocation.id.hex()}; {number} revocations are known")
    return 0


def _run_revocations(args: argparse.Namespace) -> int:
    print_revocations(asyncio.run(read_revocations(args.mesh, args.timeout_seconds)), Console())
    return 0


async def revoke(signed: SignedRevocation, mesh: Path, timeout_seconds: float) -> int:
    """Send a revocation to the KMS that mesh.json describes; return how many it knows then.

    Raises whatever the KMS refuses with, `InputUnreadable` and `RevocationNotConfirmed`.
    """
    async with kms_stub(read_service_access(MeshReader(mesh), "kms")) as stub:
        request = kms_pb2.RevokeRequest(signed_revocation=signed.document, request_id=uuid.uuid4().hex)
        with remote_errors():
            response = await stub.Revoke(request, timeout=timeout_seconds)
    if response.id != signed.revocation.id:
        raise RevocationNotConfirmed("the KMS confirmed another revocation than this one")
    return response.number


async def read_revocations(mesh: Path, timeout_seconds: float) -> Known:
    """Ask the KMS for all revocations and the policy in force. Raises what it refuses with and `InputUnreadable`."""
    async with kms_stub(read_service_access(MeshReader(mesh), "kms")) as stub:
        found: list[SignedRevocation] = []
        token = b""
        with remote_errors():
            policy = await stub.GetPolicy(kms_pb2.GetPolicyRequest(), timeout=timeout_seconds)
            while True:
                request = kms_pb2.GetRevocationsRequest(page_token=token)
                page = await stub.GetRevocations(request, timeout=timeout_seconds)
                found.extend(map(parse_revocation, page.signed_revocations))
                if page.next_page_token <= token:
                    break
                token = page.next_page_token
    return Known(parse_signed(policy.signed_policy).policy, tuple(found))


def print_revocations(known: Known, console: Console) -> None:
    """Print them for people, the newest last; what no operator of the policy in force signed is marked."""
    for signed in sorted(known.revocations, key=lambda each: each.revocation.time_ms):
        revocation = signed.revocation
        state = "lifted" if revocation.id in known.policy.lifted_revocations else "in force"
        moment = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(revocation.time_ms / 1000))
        for line in (
            f"{revocation.kind} {revocation.value}: {state}",
            f"  since   {moment}",
            f"  reason  {revocation.reason}",
            f"  by      {signed.key.hex()}{_doubt(signed, known.policy)}",
            f"  id      {revocation.id.hex()}",
        ):
            console.out(line, highlight=False)
    console.out(f"{len(known.revocations)} revocations, under policy version {known.policy.version}", highlight=False)


def _doubt(signed: SignedRevocation, policy: Policy) -> str:
    try:
        verify_revocation(signed, policy.operator_keys, policy.trust_domain)
    except MeshError as error:
        return f" ({error.reason} under policy version {policy.version})"
    return ""
