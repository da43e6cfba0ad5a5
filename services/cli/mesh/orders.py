"""It is responsible for orders of m of n operators: drafted, signed by one after the other, carried out."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from pathlib import Path

from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.policy.compose import compose_hash, read_anchors
from libs.policy.orders import (
    ERASE_VAULT,
    GIVE_TAG_KEY,
    HOLD_VAULT,
    JOIN_KMS,
    PRUNE_LOG,
    RELEASE_VAULT,
    RETIRE_KEY,
    Order,
    SignedOrder,
    join_subject,
    parse_order,
    require_retirable,
    valid_signers,
)
from libs.policy.releases import KEY_NAME
from libs.policy.vocabulary import INSTANCE
from services.cli.mesh.kms_access import KmsAccess, read_kms_access
from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.mesh.operators import load_key
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output
from services.cli.terminal.numbers import number_within

DAY_SECONDS = 86400
_MOST_DAYS = 365
_DEVICE = re.compile("[0-9a-f]{64}")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add retire, join, approve and submit."""
    retire = commands.add_parser("retire", help="draft the order to refuse a key for ever")
    add_state_option(retire)
    retire.add_argument("name", help="the key's name, for example models/claims")
    add_order_options(retire, valid_days=7)
    retire.set_defaults(run=_run_retire)
    join = commands.add_parser("join", help="draft the order to give another KMS the root")
    add_state_option(join)
    join.add_argument("instance", help="the new instance's name, as in its configuration")
    join.add_argument("--compose", type=Path, required=True, help="the app-compose that it was deployed from")
    join.add_argument("--device", required=True, metavar="DEVICE_ID", help="its machine, as its log names it")
    add_order_options(join, valid_days=1)
    join.set_defaults(run=_run_join)
    approve = commands.add_parser("approve", help="sign an order as an operator")
    approve.add_argument("order", type=Path, help="the order; it is replaced by one with your signature")
    approve.add_argument("--key", type=Path, required=True, help="the operator's key file")
    approve.set_defaults(run=_run_approve)
    submit = commands.add_parser("submit", help="have an order carried out")
    add_state_option(submit)
    submit.add_argument("order", type=Path)
    submit.set_defaults(run=_run_submit)


def add_order_options(parser: argparse.ArgumentParser, *, valid_days: int) -> None:
    """Add how long an order holds, and where it goes."""
    days = number_within(1, _MOST_DAYS)
    parser.add_argument("--valid-days", type=days, default=valid_days, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the order; must not exist")


def _run_retire(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if not KEY_NAME.fullmatch(args.name):
        raise InputUnreadable(f"{args.name!r} is no key name")
    require_retirable(args.name)
    trust_domain = read_kms_access(layout_of(args).mesh_file).trust_domain
    order = Order(trust_domain, RETIRE_KEY, args.name, int(time.time()) + args.valid_days * DAY_SECONDS)
    write_output(args.out, SignedOrder(order).document)
    print(f"{args.out}: to retire {args.name}, which cannot be undone; operators sign it with teemesh kms approve")
    return 0


def _run_join(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if not INSTANCE.fullmatch(args.instance) or not _DEVICE.fullmatch(args.device):
        raise InputUnreadable("an instance is lower-case letters, digits and hyphens, a device 64 hexadecimal digits")
    trust_domain = read_kms_access(layout_of(args).mesh_file).trust_domain
    compose = read_input(args.compose)
    if (anchors := read_anchors(compose.decode(errors="surrogateescape"))).role != "kms":
        raise InputUnreadable(f"{args.compose} is a {anchors.role}'s app-compose, not a KMS's")
    subject = join_subject(f"spiffe://{trust_domain}/kms/{args.instance}", compose_hash(compose), args.device)
    order = Order(trust_domain, JOIN_KMS, subject, int(time.time()) + args.valid_days * DAY_SECONDS)
    write_output(args.out, SignedOrder(order).document)
    print(f"{args.out}: to give {subject} the root; operators sign it with teemesh kms approve")
    return 0


def _run_approve(args: argparse.Namespace) -> int:
    document = parse_order(read_input(args.order))
    # Before the key is read: who signs MUST have seen what.
    _show(document.order)
    signed = document.signed_by(load_key(args.key))
    write_output(args.order, signed.document)
    valid = len(valid_signers(signed))
    print(f"{args.order}: signed by {valid}")
    if doubtful := len(signed.signatures) - valid:
        print(f"{doubtful} of its signatures are not valid, so it will be refused: draft and sign it anew")
    return 0


def _show(order: Order) -> None:
    until = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(order.not_after))
    print(f"action        {order.action}")
    print(f"subject       {order.subject}")
    print(f"trust domain  {order.trust_domain}")
    print(f"until         {until}")
    if order.reason:
        print(f"reason        {order.reason}")
    sys.stdout.flush()


def _run_submit(args: argparse.Namespace) -> int:
    signed = read_input(args.order)
    order = parse_order(signed).order
    if order.action == GIVE_TAG_KEY:
        raise InputUnreadable(f"an order to {order.action} is for the ledger: teemesh ledger tag-key")
    if order.action in (ERASE_VAULT, HOLD_VAULT, RELEASE_VAULT, PRUNE_LOG):
        raise InputUnreadable(f"an order to {order.action} is for the ledger: teemesh ledger submit")
    if order.action != RETIRE_KEY:
        raise InputUnreadable(f"an order to {order.action} is for the instance that joins: its configuration names it")
    asyncio.run(_submit(read_kms_access(layout_of(args).mesh_file), signed))
    print(f"{order.subject}: retired")
    return 0


async def _submit(access: KmsAccess, signed: bytes) -> None:
    async def ask(stub: pb_grpc.KmsServiceStub, timeout: float) -> pb.RetireKeyResponse:
        return await stub.RetireKey(pb.RetireKeyRequest(signed_order=signed), timeout=timeout)

    await access.ask(ask)
