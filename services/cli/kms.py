"""It is responsible for `teemesh kms`: what operators do with keys, and what the log says was done.

keys         list the keys that have an epoch, who may use them, since when
public-key   print a key's public half, after checking that the mesh CA says whose it is
rotate       begin a key's next epoch; the older ones go on to open what they sealed
retire       draft the order to refuse a key for ever
join         draft the order to give another instance of the KMS the root
approve      add one operator's signature to an order
submit       have the KMS carry out an order that enough operators signed
release-log  print every decision about keys that the ledger holds
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from teemesh.kms.v1 import kms_pb2 as pb

from libs.errors import Code, MeshError
from libs.policy.compose import compose_hash, read_anchors
from libs.policy.custody import KeyStatement, verify_key_statement
from libs.policy.orders import JOIN_KMS, RETIRE_KEY, Order, SignedOrder, join_subject, parse_order
from libs.policy.releases import KEY_NAME, KeyAlgorithm
from libs.policy.vocabulary import INSTANCE
from libs.rpc.errors import remote_errors
from services.cli.inputs import InputUnreadable, read_input, refuse_existing, write_output
from services.cli.kms_access import TIMEOUT_SECONDS, KmsAccess, read_kms_access
from services.cli.layout import add_state_option
from services.cli.operators import load_key
from services.cli.release_log import print_release_log

_DAY = 86400
_DEVICE = re.compile("[0-9a-f]{64}")


class StatementOfAnother(MeshError):
    """The KMS stated another key than the one that was asked for."""

    code = Code.UNAUTHENTICATED
    reason = "KEY_STATEMENT_OF_ANOTHER"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh kms`."""
    parser = subparsers.add_parser("kms", help="see, rotate and retire the mesh's keys")
    commands = parser.add_subparsers(dest="kms_command", required=True)
    keys = commands.add_parser("keys", help="list the keys in use")
    add_state_option(keys)
    keys.add_argument("--json", action="store_true", help="one JSON object a line")
    keys.set_defaults(run=_run_keys)
    public = commands.add_parser("public-key", help="print a key's public half, PEM")
    _add_key(public)
    public.add_argument("--epoch", type=int, default=0, help="default: the newest")
    public.set_defaults(run=_run_public_key)
    rotate = commands.add_parser("rotate", help="begin a key's next epoch")
    _add_key(rotate)
    rotate.add_argument("--epoch", type=int, help="the epoch to begin; default: the one after the newest")
    rotate.set_defaults(run=_run_rotate)
    retire = commands.add_parser("retire", help="draft the order to refuse a key for ever")
    _add_key(retire)
    _add_order(retire, valid_days=7)
    retire.set_defaults(run=_run_retire)
    join = commands.add_parser("join", help="draft the order to give another KMS the root")
    add_state_option(join)
    join.add_argument("instance", help="the new instance's name, as in its configuration")
    join.add_argument("--compose", type=Path, required=True, help="the app-compose that it was deployed from")
    join.add_argument("--device", required=True, metavar="DEVICE_ID", help="its machine, as its log names it")
    _add_order(join, valid_days=1)
    join.set_defaults(run=_run_join)
    approve = commands.add_parser("approve", help="sign an order as an operator")
    approve.add_argument("order", type=Path, help="the order; it is replaced by one with your signature")
    approve.add_argument("--key", type=Path, required=True, help="the operator's key file")
    approve.set_defaults(run=_run_approve)
    submit = commands.add_parser("submit", help="have an order carried out")
    add_state_option(submit)
    submit.add_argument("order", type=Path)
    submit.set_defaults(run=_run_submit)
    release_log = commands.add_parser("release-log", help="print the decisions about keys in the ledger")
    add_state_option(release_log)
    release_log.add_argument("--follow", action="store_true", help="go on as the log grows")
    release_log.add_argument("--json", action="store_true", help="one JSON object a line")
    release_log.set_defaults(run=_run_release_log)


def _add_order(parser: argparse.ArgumentParser, *, valid_days: int) -> None:
    parser.add_argument("--valid-days", type=int, default=valid_days, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the order; must not exist")


def _add_key(parser: argparse.ArgumentParser) -> None:
    add_state_option(parser)
    parser.add_argument("name", help="the key's name, for example models/claims")


def _run_keys(args: argparse.Namespace) -> int:
    keys = asyncio.run(_list(read_kms_access(args.state)))
    console = Console()
    if args.json:
        for key in keys:
            console.out(json.dumps(_members(key)), highlight=False)
        return 0
    table = Table("name", "algorithm", "newest epoch", "since", "used by", box=None, pad_edge=False)
    for key in keys:
        since = "retired" if key.retired else time.strftime("%Y-%m-%d %H:%MZ", time.gmtime(key.newest_since_ms / 1000))
        users = ", ".join(key.roles) or "nobody: policy has no rule"
        table.add_row(key.name, _algorithm(key) or "-", str(key.newest_epoch), since, users)
    console.print(table)
    return 0


def _run_public_key(args: argparse.Namespace) -> int:
    access = read_kms_access(args.state)
    statement = asyncio.run(_state(access, args.name, args.epoch))
    console = Console()
    encoded = base64.encodebytes(statement.public_key).decode().strip()
    console.out(f"-----BEGIN PUBLIC KEY-----\n{encoded}\n-----END PUBLIC KEY-----", highlight=False)
    Console(stderr=True).out(
        f"{statement.name}, epoch {statement.epoch} of {statement.newest_epoch}, {statement.algorithm}, "
        f"for {', '.join(sorted(statement.roles))}; says the CA of {statement.trust_domain}",
        highlight=False,
    )
    return 0


def _run_rotate(args: argparse.Namespace) -> int:
    epoch = asyncio.run(_rotate(read_kms_access(args.state), args.name, args.epoch))
    print(f"{args.name}: epoch {epoch} is the newest")
    return 0


def _run_retire(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if not KEY_NAME.fullmatch(args.name):
        raise InputUnreadable(f"{args.name!r} is no key name")
    access = read_kms_access(args.state)
    order = Order(access.trust_domain, RETIRE_KEY, args.name, int(time.time()) + args.valid_days * _DAY)
    write_output(args.out, SignedOrder(order).document)
    print(f"{args.out}: to retire {args.name}, which cannot be undone; operators sign it with teemesh kms approve")
    return 0


def _run_join(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if not INSTANCE.fullmatch(args.instance) or not _DEVICE.fullmatch(args.device):
        raise InputUnreadable("an instance is lower-case letters, digits and hyphens, a device 64 hexadecimal digits")
    trust_domain = read_kms_access(args.state).trust_domain
    compose = read_input(args.compose)
    if (anchors := read_anchors(compose.decode(errors="surrogateescape"))).role != "kms":
        raise InputUnreadable(f"{args.compose} is a {anchors.role}'s app-compose, not a KMS's")
    subject = join_subject(f"spiffe://{trust_domain}/kms/{args.instance}", compose_hash(compose), args.device)
    order = Order(trust_domain, JOIN_KMS, subject, int(time.time()) + args.valid_days * _DAY)
    write_output(args.out, SignedOrder(order).document)
    print(f"{args.out}: to give {subject} the root; operators sign it with teemesh kms approve")
    return 0


def _run_approve(args: argparse.Namespace) -> int:
    document = parse_order(read_input(args.order))
    order = document.order
    signed = document.signed_by(load_key(args.key))
    write_output(args.order, signed.document)
    print(f"{args.order}: {order.action} {order.subject} in {order.trust_domain}, signed by {len(signed.signatures)}")
    return 0


def _run_submit(args: argparse.Namespace) -> int:
    signed = read_input(args.order)
    order = parse_order(signed).order
    if order.action != RETIRE_KEY:
        raise InputUnreadable(f"an order to {order.action} is for the instance that joins: its configuration names it")
    asyncio.run(_submit(read_kms_access(args.state), signed))
    print(f"{order.subject}: retired")
    return 0


def _run_release_log(args: argparse.Namespace) -> int:
    asyncio.run(print_release_log(args.state, Console(), follow=args.follow, as_json=args.json))
    return 0


async def _list(access: KmsAccess) -> list[pb.KeyDescription]:
    keys: list[pb.KeyDescription] = []
    async with access.stub() as stub:
        after = ""
        while True:
            with remote_errors():
                page = await stub.ListKeys(pb.ListKeysRequest(after=after), timeout=TIMEOUT_SECONDS)
            keys.extend(page.keys)
            after = page.next_after
            if not after:
                return keys


async def _state(access: KmsAccess, name: str, epoch: int) -> KeyStatement:
    async with access.stub() as stub:
        with remote_errors():
            stated = await stub.GetPublicKey(pb.GetPublicKeyRequest(name=name, epoch=epoch), timeout=TIMEOUT_SECONDS)
    statement = verify_key_statement(stated.statement, stated.statement_signature, access.ca_spki)
    if (statement.trust_domain, statement.name) != (access.trust_domain, name) or epoch not in (0, statement.epoch):
        raise StatementOfAnother(f"the KMS stated {statement.name}, epoch {statement.epoch}")
    return statement


async def _rotate(access: KmsAccess, name: str, epoch: int | None) -> int:
    if epoch is None:
        newest = next((key.newest_epoch for key in await _list(access) if key.name == name), 1)
        epoch = newest + 1
    async with access.stub() as stub:
        with remote_errors():
            await stub.RotateKey(pb.RotateKeyRequest(name=name, epoch=epoch), timeout=TIMEOUT_SECONDS)
    return epoch


async def _submit(access: KmsAccess, signed: bytes) -> None:
    async with access.stub() as stub:
        with remote_errors():
            await stub.RetireKey(pb.RetireKeyRequest(signed_order=signed), timeout=TIMEOUT_SECONDS)


def _members(key: pb.KeyDescription) -> dict[str, object]:
    return {
        "name": key.name,
        "algorithm": _algorithm(key),
        "newest_epoch": key.newest_epoch,
        "newest_since_ms": key.newest_since_ms,
        "retired": key.retired,
        "roles": list(key.roles),
    }


def _algorithm(key: pb.KeyDescription) -> str | None:
    return next((str(each) for each in KeyAlgorithm if each.number == key.algorithm), None)
