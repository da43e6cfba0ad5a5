"""It is responsible for what operators order of tenants' vaults: erased, held, released; and for having orders done.

An order is drafted here, signed by one operator after the other (`teemesh kms approve`), and submitted. It names the
vault, not the tenant: the ledger says which one that is now.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from teemesh.ledger.v1 import ledger_pb2 as pb
from teemesh.ledger.v1 import ledger_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.policy.orders import (
    ERASE_VAULT,
    GIVE_TAG_KEY,
    HOLD_VAULT,
    ORDER_REASON,
    PRUNE_LOG,
    RELEASE_VAULT,
    Order,
    SignedOrder,
    parse_order,
)
from libs.policy.vault_orders import VaultPart, epoch_of, month_of, vault_part
from libs.rpc.errors import remote_errors
from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.mesh.orders import DAY_SECONDS, add_order_options
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import ServiceAccess, read_service_access
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output
from services.cli.terminal.numbers import number_within

_ASK_SECONDS = 15.0
_MOST_SECONDS = 3600
_VALID_DAYS = 7

T = TypeVar("T")


class LedgerStillErasing(MeshError):
    """The ledger has the order and has not said in time that it is done: submit it again to go on waiting."""

    code = Code.DEADLINE_EXCEEDED
    reason = "LEDGER_STILL_ERASING"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add vault, erase, hold, release and submit."""
    vault = commands.add_parser("vault", help="print a tenant's vault: its months, and whether it is held")
    _add_tenant(vault)
    vault.set_defaults(run=_run_vault)
    erase = commands.add_parser("erase", help="draft the order to erase a tenant's vault, or a month of it")
    erase.add_argument("--epoch", metavar="YYYY-MM", help="this month alone, which must be over")
    _add_draft(erase, ERASE_VAULT)
    hold = commands.add_parser("hold", help="draft the order that nothing of a tenant's vault be erased")
    _add_draft(hold, HOLD_VAULT)
    release = commands.add_parser("release", help="draft the order to end a hold")
    _add_draft(release, RELEASE_VAULT)
    submit = commands.add_parser("submit", help="have an order carried out, and wait until the log says so")
    add_state_option(submit)
    submit.add_argument("order", type=Path)
    seconds = number_within(1, _MOST_SECONDS)
    submit.add_argument("--timeout-seconds", type=seconds, default=60, help="default: %(default)s")
    submit.set_defaults(run=_run_submit)


def _add_tenant(parser: argparse.ArgumentParser) -> None:
    add_state_option(parser)
    parser.add_argument("tenant", help="the tenant's random id, 32 hexadecimal digits")


def _add_draft(parser: argparse.ArgumentParser, action: str) -> None:
    _add_tenant(parser)
    parser.add_argument("--reason", required=True, help="why; it stays in the public log for ever, so no names")
    add_order_options(parser, valid_days=_VALID_DAYS)
    parser.set_defaults(run=_run_draft, action=action, **({} if action == ERASE_VAULT else {"epoch": None}))


def _run_vault(args: argparse.Namespace) -> int:
    vault = asyncio.run(find_vault(access_to_ledger(args), args.tenant))
    state = "erasure ordered" if vault.closed else "held" if vault.held else "open"
    months = ", ".join(map(month_of, vault.epochs)) or "none"
    print(f"vault   {vault.vault_id.hex()}\nstate   {state}\nmonths  {months}")
    return 0


def _run_draft(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if not ORDER_REASON.fullmatch(args.reason):
        raise InputUnreadable("a reason is printable ASCII, 256 characters at most")
    epoch = None if args.epoch is None else epoch_of(args.epoch)
    access = access_to_ledger(args)
    part = VaultPart(asyncio.run(find_vault(access, args.tenant)).vault_id, epoch)
    until = int(time.time()) + args.valid_days * DAY_SECONDS
    order = Order(access.trust_domain, args.action, part.subject, until, args.reason)
    write_output(args.out, SignedOrder(order).document)
    undone = ", which cannot be undone" if args.action == ERASE_VAULT else ""
    print(f"{args.out}: to {order.action} {part.subject}{undone}; operators sign it with teemesh kms approve")
    return 0


def _run_submit(args: argparse.Namespace) -> int:
    signed = read_input(args.order)
    order = parse_order(signed).order
    access = access_to_ledger(args)
    if order.action == PRUNE_LOG:
        allowed = asyncio.run(_allow_pruning(access, signed))
        print(f"entries before {allowed.min_index} may be pruned, says entry {allowed.index}")
        return 0
    if order.action == GIVE_TAG_KEY:
        raise InputUnreadable(f"an order to {order.action} is for whom it names: teemesh ledger tag-key")
    part = vault_part(order)
    if order.action == ERASE_VAULT:
        print(_words(part, asyncio.run(_erase(access, signed, args.timeout_seconds))))
    elif order.action in (HOLD_VAULT, RELEASE_VAULT):
        hold = asyncio.run(_set_hold(access, signed))
        print(f"{part.subject}: {'held' if hold.held else 'released'}, says entry {hold.index}")
    else:
        raise InputUnreadable(f"an order to {order.action} is none for the ledger")
    return 0


def _words(part: VaultPart, erased: pb.EraseVaultResponse) -> str:
    what = "its shares, its tag share and its tenant's name" if erased.epoch == 0 else "the month's share"
    half = {"retired": "is refused for ever", "kept": "stays, for the other months"}
    return (
        f"{part.subject}: erased, {what} are gone\n"
        f"ordered by entry {erased.ordered_index}, done by entry {erased.done_index}; the vault had {erased.last_seq}\n"
        f"the KMS's half {half.get(erased.key, f'is not refused: {erased.key}')}"
    )


def access_to_ledger(args: argparse.Namespace) -> ServiceAccess:
    return read_service_access(MeshReader(layout_of(args).mesh_file), "ledger")


async def ask_ledger(access: ServiceAccess, ask: Callable[[pb_grpc.LedgerServiceStub], Awaitable[T]]) -> T:
    async with access.channel() as channel:
        with remote_errors():
            return await ask(pb_grpc.LedgerServiceStub(channel))


async def find_vault(access: ServiceAccess, tenant: str) -> pb.GetVaultResponse:
    async def ask(stub: pb_grpc.LedgerServiceStub) -> pb.GetVaultResponse:
        return await stub.GetVault(pb.GetVaultRequest(tenant_id=tenant), timeout=_ASK_SECONDS)

    return await ask_ledger(access, ask)


async def _erase(access: ServiceAccess, signed: bytes, seconds: float) -> pb.EraseVaultResponse:
    async def ask(stub: pb_grpc.LedgerServiceStub) -> pb.EraseVaultResponse:
        return await stub.EraseVault(pb.EraseVaultRequest(signed_order=signed), timeout=seconds)

    try:
        return await ask_ledger(access, ask)
    except MeshError as error:
        if error.code is not Code.DEADLINE_EXCEEDED:
            raise
        raise LedgerStillErasing(f"not done within {seconds:g} s: submit the order again to go on waiting") from error


async def _set_hold(access: ServiceAccess, signed: bytes) -> pb.SetHoldResponse:
    async def ask(stub: pb_grpc.LedgerServiceStub) -> pb.SetHoldResponse:
        return await stub.SetHold(pb.SetHoldRequest(signed_order=signed), timeout=_ASK_SECONDS)

    return await ask_ledger(access, ask)


async def _allow_pruning(access: ServiceAccess, signed: bytes) -> pb.AllowPruningResponse:
    async def ask(stub: pb_grpc.LedgerServiceStub) -> pb.AllowPruningResponse:
        return await stub.AllowPruning(pb.AllowPruningRequest(signed_order=signed), timeout=_ASK_SECONDS)

    return await ask_ledger(access, ask)
