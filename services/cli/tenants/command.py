"""It is responsible for `teemesh tenants`: who may use the routers, with which keys, and how much.

list          list the tenants, each by its signed record
show          show all of one tenant's record
create        make a tenant and its first API key
add-key       make one more API key
rotate-key    make an API key that is for the same as an old one, which stays until it is withdrawn
withdraw-key  end an API key
set-limits    change what the tenant may do at each router
disable       refuse all of a tenant's keys; enable ends that
sign          sign a draft as the tenant administrator
put           store a signed record

What changes a record signs and stores it (`--sign-key`), or drafts it to be signed elsewhere (`--out`). An API key that
is made is printed once and kept nowhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from libs import jcs
from libs.policy.tenant_record import SCOPES, Limits, TenantRecord, read_record
from libs.policy.tenants import sign_tenant
from services.cli.mesh.operators import load_key
from services.cli.mesh.options import add_mesh_options
from services.cli.tenants.access import TenantAccess, is_tenant_id
from services.cli.tenants.changes import (
    LIMITS,
    Changed,
    NewKey,
    add_key,
    create,
    rotate_key,
    set_disabled,
    set_limits,
    withdraw_key,
)
from services.cli.tenants.report import listed_json, print_tenant, print_tenants, record_json
from services.cli.terminal.inputs import InputUnreadable, read_input, read_json, refuse_existing, write_output
from services.cli.terminal.numbers import number_within
from services.cli.terminal.verdicts import ACCEPTED, REFUSED

_DAY_SECONDS = 86400
_MOST_DAYS = 3650
_MOST = 2**53 - 1
_NONE = "none"

Change = Callable[[argparse.Namespace], Changed]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh tenants`."""
    parser = subparsers.add_parser("tenants", help="see and change who may use the routers, and how much")
    commands = parser.add_subparsers(dest="tenants_command", required=True)
    listing = commands.add_parser("list", help="list the tenants")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    add_mesh_options(listing)
    listing.set_defaults(run=_run_list)
    showing = commands.add_parser("show", help="show all of one tenant's record")
    _add_tenant(showing)
    showing.add_argument("--json", action="store_true", help="one JSON object, for machines")
    add_mesh_options(showing)
    showing.set_defaults(run=_run_show)
    creating = commands.add_parser("create", help="make a tenant and its first API key")
    creating.add_argument("name", help="for people")
    _add_key(creating, default="first")
    _add_limits(creating)
    _add_change(creating, lambda args: create(args.name, _new_key(args), Limits(**_given_limits(args))))
    adding = commands.add_parser("add-key", help="make one more API key")
    _add_tenant(adding)
    _add_key(adding)
    _add_change(adding, lambda args: add_key(_current(args), _new_key(args)))
    rotating = commands.add_parser("rotate-key", help="make an API key that is for the same as an old one")
    _add_tenant(rotating)
    rotating.add_argument("old", metavar="OLD", help="the old key's id; it stays until it is withdrawn")
    rotating.add_argument("--key-id", required=True, metavar="ID", help="the new key's id")
    _add_end(rotating)
    _add_change(rotating, lambda args: rotate_key(_current(args), args.old, args.key_id, _end(args)))
    withdrawing = commands.add_parser("withdraw-key", help="end an API key, at every router within 30 seconds")
    _add_tenant(withdrawing)
    withdrawing.add_argument("key_id", metavar="KEY", help="the key's id")
    _add_change(withdrawing, lambda args: withdraw_key(_current(args), args.key_id))
    limiting = commands.add_parser("set-limits", help="change what the tenant may do at each router")
    _add_tenant(limiting)
    _add_limits(limiting)
    _add_change(limiting, lambda args: set_limits(_current(args), _given_limits(args)))
    for name, disabled in (("disable", True), ("enable", False)):
        switching = commands.add_parser(name, help="refuse all of a tenant's keys" if disabled else "end a disable")
        _add_tenant(switching)
        _add_change(switching, _switch(disabled))
    signing = commands.add_parser("sign", help="sign a draft as the tenant administrator")
    signing.add_argument("draft", type=Path, help="the draft; it is replaced by the signed record")
    signing.add_argument("--sign-key", type=Path, required=True, metavar="FILE", help="the tenant administrator's key")
    signing.set_defaults(run=_run_sign)
    putting = commands.add_parser("put", help="store a signed record")
    putting.add_argument("record", type=Path)
    add_mesh_options(putting)
    putting.set_defaults(run=_run_put)


def _add_tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tenant", type=_tenant_id, help="its id, 32 hexadecimal digits")


def _add_key(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--key-id",
        required=default is None,
        default=default,
        metavar="ID",
        help="names the key in usage entries and here" + ("" if default is None else "; default: %(default)s"),
    )
    parser.add_argument("--scope", action="append", choices=sorted(SCOPES), help="default: all; once per scope")
    parser.add_argument("--model", action="append", metavar="ID", help="default: all; once per model")
    _add_end(parser)


def _add_end(parser: argparse.ArgumentParser) -> None:
    days = number_within(1, _MOST_DAYS)
    parser.add_argument("--valid-days", type=days, metavar="N", help="default: until it is withdrawn")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for name in LIMITS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=_limit, metavar="N|none")


def _add_change(parser: argparse.ArgumentParser, change: Change) -> None:
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--sign-key", type=Path, metavar="FILE", help="sign as the tenant administrator, and store")
    how.add_argument("--out", type=Path, metavar="FILE", help="write a draft to be signed elsewhere; must not exist")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    add_mesh_options(parser)
    parser.set_defaults(run=lambda args: _run_change(args, change))


def _run_list(args: argparse.Namespace) -> int:
    tenants = asyncio.run(_access(args).all())
    console = Console()
    if args.json:
        for listed in tenants:
            console.out(json.dumps(listed_json(listed)), highlight=False)
    else:
        print_tenants(tenants, console)
    return ACCEPTED if all(listed.record is not None for listed in tenants) else REFUSED


def _run_show(args: argparse.Namespace) -> int:
    record = _current(args)
    if args.json:
        print(json.dumps(record_json(record), indent=2))
    else:
        print_tenant(record, time.time(), Console())
    return 0


def _run_change(args: argparse.Namespace, change: Change) -> int:
    if args.out is not None:
        refuse_existing(args.out)
    signer = None if args.sign_key is None else load_key(args.sign_key)
    changed = change(args)
    if signer is not None:
        asyncio.run(_access(args).store(sign_tenant(changed.record, signer)))
    else:
        # Indented, because people read a draft; what is signed is the canonical form anyway.
        draft = {"record": changed.record.value}
        write_output(args.out, json.dumps(draft, indent=2).encode() + b"\n")
    _say(args, changed)
    return 0


def _run_sign(args: argparse.Namespace) -> int:
    draft = read_json(args.draft)
    if draft.keys() != {"record"}:
        raise InputUnreadable(f"{args.draft} is not a draft of a tenant's record")
    record = read_record(draft["record"])
    # Before the key is read: who signs MUST have seen what.
    print_tenant(record, time.time(), Console())
    write_output(args.draft, sign_tenant(record, load_key(args.sign_key)))
    print(f"{args.draft}: signed; store it with teemesh tenants put")
    return 0


def _run_put(args: argparse.Namespace) -> int:
    record = asyncio.run(_access(args).store(read_input(args.record)))
    print(f"{record.tenant_id}: version {record.version} is stored")
    return 0


def _say(args: argparse.Namespace, changed: Changed) -> None:
    record = changed.record
    if args.json:
        said = {"tenant_id": record.tenant_id, "version": record.version}
        if changed.api_key is not None:
            said |= {"key_id": record.keys[-1].id, "api_key": changed.api_key}
        print(jcs.dumps(said).decode())
        return
    done = "stored" if args.out is None else f"drafted in {args.out}: sign it with teemesh tenants sign"
    print(f"{record.tenant_id}: version {record.version} is {done}")
    if changed.api_key is not None:
        print(f"key {record.keys[-1].id}, shown this once: {changed.api_key}")


def _access(args: argparse.Namespace) -> TenantAccess:
    return TenantAccess(args.mesh, args.timeout_seconds)


def _current(args: argparse.Namespace) -> TenantRecord:
    return asyncio.run(_access(args).one(args.tenant))


def _switch(disabled: bool) -> Change:
    return lambda args: set_disabled(_current(args), disabled=disabled)


def _new_key(args: argparse.Namespace) -> NewKey:
    scopes, models = args.scope, args.model
    return NewKey(
        args.key_id,
        None if scopes is None else tuple(sorted(set(scopes))),
        _end(args),
        None if models is None else tuple(sorted(set(models))),
    )


def _end(args: argparse.Namespace) -> int | None:
    return None if args.valid_days is None else int(time.time()) + args.valid_days * _DAY_SECONDS


def _given_limits(args: argparse.Namespace) -> dict[str, int | None]:
    given = {name: getattr(args, name) for name in LIMITS}
    return {name: None if value == _NONE else value for name, value in given.items() if value is not None}


def _limit(text: str) -> int | str:
    return _NONE if text == _NONE else number_within(1, _MOST)(text)


def _tenant_id(text: str) -> str:
    if not is_tenant_id(text):
        raise argparse.ArgumentTypeError("give 32 lower-case hexadecimal digits, as `teemesh tenants list` shows them")
    return text
