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
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

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
from libs.policy.signatures import SignedPolicy, parse_signed
from services.cli.mesh.kms_access import read_kms_access
from services.cli.mesh.operators import load_key
from services.cli.mesh.options import PUBLISHING_SECONDS, add_mesh_options
from services.cli.mesh.reading import MeshReader


class RevocationNotConfirmed(MeshError):
    """The KMS answered about another revocation than the one that was sent."""

    code = Code.ABORTED
    reason = "REVOCATION_NOT_CONFIRMED"


@dataclass(frozen=True, slots=True)
class Known:
    """What the KMS says is revoked, and the policy in force, which may lift some of it."""

    signed_policy: SignedPolicy
    """As the KMS gives it: nobody's signatures were verified."""
    revocations: tuple[SignedRevocation, ...]

    @property
    def policy(self) -> Policy:
        return self.signed_policy.policy


def add_revoke(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh policy revoke`."""
    parser.add_argument("kind", choices=[str(kind) for kind in RevocationKind])
    parser.add_argument(
        "value",
        help="compose hash, device id or GPU UEID, CPU family, SHA-256 of a key's SPKI, SPIFFE ID, or tenant id",
    )
    parser.add_argument("--reason", required=True, metavar="TEXT", help="for people; it goes into the log")
    parser.add_argument("--operator-key", type=Path, required=True, metavar="FILE", help="the operator's key file")
    add_mesh_options(parser, PUBLISHING_SECONDS)
    parser.set_defaults(run=_run_revoke)


def add_revocations(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh policy revocations`."""
    add_mesh_options(parser, PUBLISHING_SECONDS)
    parser.set_defaults(run=_run_revocations)


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
    request = kms_pb2.RevokeRequest(signed_revocation=signed.document, request_id=uuid.uuid4().hex)

    async def ask(stub: kms_pb2_grpc.KmsServiceStub, timeout: float) -> kms_pb2.RevokeResponse:
        return await stub.Revoke(request, timeout=timeout)

    response = await read_kms_access(mesh).ask(ask, timeout_seconds)
    if response.id != signed.revocation.id:
        raise RevocationNotConfirmed("the KMS confirmed another revocation than this one")
    return response.number


async def read_revocations(mesh: Path, timeout_seconds: float) -> Known:
    """Ask the KMS for all revocations and the policy in force. Raises what it refuses with and `InputUnreadable`."""
    return await read_kms_access(mesh).ask(_read_all, timeout_seconds)


async def _read_all(stub: kms_pb2_grpc.KmsServiceStub, timeout: float) -> Known:
    found: list[SignedRevocation] = []
    token = b""
    policy = await stub.GetPolicy(kms_pb2.GetPolicyRequest(), timeout=timeout)
    while True:
        page = await stub.GetRevocations(kms_pb2.GetRevocationsRequest(page_token=token), timeout=timeout)
        found.extend(map(parse_revocation, page.signed_revocations))
        if page.next_page_token <= token:
            return Known(parse_signed(policy.signed_policy), tuple(found))
        token = page.next_page_token


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
