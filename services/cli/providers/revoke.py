"""It is responsible for `teemesh providers revoke`: what one operator withdraws of a node, and where the value is from.

A name is what the operator gave. A key, a measurement and a machine are taken from the node's evidence, which is
appraised here, and only where the node itself shows that the evidence is its own: else a registry could choose what
operators withdraw.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from libs.audit.session import SessionTerms
from libs.errors import Code, MeshError
from libs.policy.revocation import Revocation, RevocationKind, sign_revocation
from libs.tee.appraisal import Appraisal
from services.cli.mesh.operators import load_key
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.registry_access import read_registry_access, spiffe_id_of
from services.cli.policy.in_force import read_in_force
from services.cli.policy.revoke import revoke
from services.cli.providers.checks import ProviderProof, check_provider
from services.cli.providers.gathering import gather
from services.cli.terminal.words import plain


class ProviderNotProven(MeshError):
    """What to revoke cannot be taken from the node's evidence, because that does not hold or is not proven its own."""

    code = Code.FAILED_PRECONDITION
    reason = "PROVIDER_NOT_PROVEN"


def add_revoke(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh providers revoke`, the node and the mesh apart."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--key", action="store_true", help="its key, not its name: a new key is a new node")
    what.add_argument("--measurement", action="store_true", help="its code: every instance of it, of any role")
    what.add_argument("--device", action="store_true", help="its machine: whatever runs there")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="for people; it goes into the log")
    parser.add_argument("--operator-key", type=Path, required=True, metavar="FILE", help="the operator's key file")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    revocation, number = asyncio.run(_revoke(args))
    print(f"revoked: {revocation.kind} {revocation.value}, id {revocation.id.hex()}; {number} revocations are known")
    return 0


async def _revoke(args: argparse.Namespace) -> tuple[Revocation, int]:
    operator = load_key(args.operator_key)
    trust_domain = MeshReader(args.mesh).text("trust_domain")
    spiffe_id = spiffe_id_of(args.node, trust_domain)
    kind, value = RevocationKind.NODE, spiffe_id
    if args.key or args.measurement or args.device:
        kind, value = _value(args, await prove(args.mesh, spiffe_id, args.timeout_seconds))
    revocation = Revocation(trust_domain, kind, value, args.reason, time_ms=int(time.time() * 1000))
    return revocation, await revoke(sign_revocation(revocation, operator), args.mesh, args.timeout_seconds)


async def prove(mesh: Path, spiffe_id: str, timeout_seconds: float) -> Appraisal:
    """Return the appraisal of a node's own evidence, whatever of it is revoked already.

    Raises `ProviderNotProven`, and what keeps it from being judged.
    """
    access = read_registry_access(mesh)
    in_force = await read_in_force(mesh, timeout_seconds, time.time())
    gathered = await gather(access, spiffe_id, timeout_seconds)
    # Under the version alone: to what is revoked already, more of the same node may be added.
    proof = ProviderProof(gathered, SessionTerms(in_force.document, access.ca_spki, int(time.time())))
    failed = next((check for check in check_provider(proof) if not check.passed), None)
    if failed is not None or proof.appraisal is None:
        why = "its evidence was not judged" if failed is None else f"{failed.reason}: {failed.detail}"
        raise ProviderNotProven(plain(f"{why}; revoke it by name, or give the value to teemesh policy revoke"))
    return proof.appraisal


def _value(args: argparse.Namespace, appraisal: Appraisal) -> tuple[RevocationKind, str]:
    if args.key:
        return RevocationKind.KEY, appraisal.spki_sha256.hex()
    if args.measurement:
        return RevocationKind.MEASUREMENT, appraisal.measurement.compose_hash
    return RevocationKind.DEVICE, appraisal.device_id
