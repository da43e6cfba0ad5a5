"""It is responsible for `teemesh kms verify`: from an agent's signature to the measurement of the workload, offline."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from libs.audit.agent_signature import parse_signed_message, verify_signed_message
from libs.policy.signatures import verify_seed
from services.cli.evidence.inputs import named, read_compose
from services.cli.terminal.inputs import read_input


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add verify."""
    parser = commands.add_parser("verify", help="walk from an agent's signature to a measurement")
    parser.add_argument("signed", type=Path, help="the signed message, as the agent gives it out")
    parser.add_argument("message", type=Path, help="the message itself")
    parser.add_argument("--policy", type=Path, required=True, help="the signed policy of the time")
    parser.add_argument(
        "--compose",
        type=Path,
        required=True,
        help="an app-compose of the mesh: its operators must have signed the policy",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    anchors = read_compose(args.compose)
    data = read_input(args.policy)
    with named(args.policy):
        policy = verify_seed(data, anchors)
    signed_data, message = read_input(args.signed), read_input(args.message)
    with named(args.signed):
        verified = verify_signed_message(parse_signed_message(signed_data), message, policy)
    use, workload = verified.use, verified.workload
    moment = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(use.time_ms / 1000))
    console = Console()
    if policy.development_roots:
        console.print("DEVELOPMENT: the policy trusts a software TEE; nothing here is proven to run on hardware")
    for line in (
        f"signed by   {use.name}, epoch {use.epoch} ({use.algorithm}), at {moment}",
        f"asked by    {use.spiffe_id}",
        f"measured as app-compose {workload.measurement.compose_hash}, TCB {workload.tcb_status}",
        f"KMS         app-compose {verified.kms.measurement.compose_hash}, TCB {verified.kms.tcb_status}",
        f"under       policy version {policy.version} of {policy.trust_domain}",
    ):
        console.out(line, highlight=False)
    return 0
