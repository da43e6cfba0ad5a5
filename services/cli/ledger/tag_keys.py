"""It is responsible for a tenant's tag key on an operator's or auditor's desk: the order that gives it, and its file.

With it `teemesh ledger verify --tag-key` finds the tenant's entries, and any number that is missing. It opens none.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import time
from pathlib import Path

from teemesh.ledger.v1 import ledger_pb2 as pb
from teemesh.ledger.v1 import ledger_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import der_of, spki_of_certificate
from libs.policy.orders import GIVE_TAG_KEY, ORDER_REASON, Order, SignedOrder, parse_order
from libs.policy.vault_orders import TagKeyGift, tag_key_gift
from services.cli.evidence.inputs import read_certificate_file
from services.cli.ledger.vaults import access_to_ledger, ask_ledger, find_vault
from services.cli.mesh.layout import add_state_option
from services.cli.mesh.orders import DAY_SECONDS, add_order_options
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output

_ASK_SECONDS = 15.0
_VALID_DAYS = 7


class TagKeyOfAnotherVault(MeshError):
    """The ledger answered about another vault than the order names."""

    code = Code.DATA_LOSS
    reason = "TAG_KEY_OF_ANOTHER_VAULT"


def add_tag_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add order-tag-key and tag-key."""
    order = commands.add_parser("order-tag-key", help="draft the order that somebody may know a tenant's entries")
    add_state_option(order)
    order.add_argument("tenant", help="the tenant's random id, 32 hexadecimal digits")
    order.add_argument(
        "--receiver", type=Path, metavar="FILE", help="the certificate of who gets it, PEM; default: this operator's"
    )
    order.add_argument("--reason", required=True, help="why; it stays in the public log for ever, so no names")
    add_order_options(order, valid_days=_VALID_DAYS)
    order.set_defaults(run=_run_order)
    fetch = commands.add_parser("tag-key", help="get a tenant's tag key, by a signed order that names this operator")
    add_state_option(fetch)
    fetch.add_argument("order", type=Path)
    fetch.add_argument("--out", type=Path, required=True, help="the key, for verify --tag-key; must not exist")
    fetch.set_defaults(run=_run_fetch)


def _run_order(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if not ORDER_REASON.fullmatch(args.reason):
        raise InputUnreadable("a reason is printable ASCII, 256 characters at most")
    access = access_to_ledger(args)
    certificate = der_of(access.certificate_pem) if args.receiver is None else read_certificate_file(args.receiver)
    receiver = hashlib.sha256(spki_of_certificate(certificate)).digest()
    gift = TagKeyGift(asyncio.run(find_vault(access, args.tenant)).vault_id, receiver)
    until = int(time.time()) + args.valid_days * DAY_SECONDS
    order = Order(access.trust_domain, GIVE_TAG_KEY, gift.subject, until, args.reason)
    write_output(args.out, SignedOrder(order).document)
    print(f"{args.out}: to {order.action} {gift.subject}; operators sign it with teemesh kms approve")
    return 0


def _run_fetch(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    signed = read_input(args.order)
    order = parse_order(signed).order
    if order.action != GIVE_TAG_KEY:
        raise InputUnreadable(f"an order to {order.action} gives no tag key")
    vault_id = tag_key_gift(order).vault_id

    async def ask(stub: pb_grpc.LedgerServiceStub) -> pb.GetTagKeyResponse:
        return await stub.GetTagKey(pb.GetTagKeyRequest(signed_order=signed), timeout=_ASK_SECONDS)

    given = asyncio.run(ask_ledger(access_to_ledger(args), ask))
    if given.vault_id != vault_id:
        raise TagKeyOfAnotherVault(f"asked for {vault_id.hex()}, got {given.vault_id.hex()}")
    write_output(args.out, given.tag_key.hex().encode() + b"\n", 0o600)
    print(f"{args.out}: the tag key of {vault_id.hex()}, says entry {given.index}; teemesh ledger verify --tag-key")
    return 0
