"""It is responsible for what operators do with single keys: list, show, rotate, and seal an environment to one."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from rich.console import Console
from rich.table import Table
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.identity.environment import seal_environment
from libs.policy.custody import KeyStatement, verify_key_statement
from libs.policy.releases import KeyAlgorithm
from services.cli.mesh.kms_access import KmsAccess, read_kms_access
from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output
from services.cli.terminal.numbers import number_within

_LAST_EPOCH = 2**32 - 1
"""Epochs are 32-bit numbers on the wire."""


class StatementOfAnother(MeshError):
    """The KMS stated another key than the one that was asked for."""

    code = Code.UNAUTHENTICATED
    reason = "KEY_STATEMENT_OF_ANOTHER"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add keys, public-key, rotate and seal."""
    keys = commands.add_parser("keys", help="list the keys in use")
    add_state_option(keys)
    keys.add_argument("--json", action="store_true", help="one JSON object a line")
    keys.set_defaults(run=_run_keys)
    public = commands.add_parser("public-key", help="print a key's public half, PEM")
    _add_key(public)
    public.add_argument("--epoch", type=number_within(1, _LAST_EPOCH), default=0, help="default: the newest")
    public.set_defaults(run=_run_public_key)
    rotate = commands.add_parser("rotate", help="begin a key's next epoch")
    _add_key(rotate)
    epoch = "the epoch to begin; default: the one after the newest"
    rotate.add_argument("--epoch", type=number_within(1, _LAST_EPOCH), help=epoch)
    rotate.set_defaults(run=_run_rotate)
    seal = commands.add_parser("seal", help="seal environment secrets to a workload's key, in dstack's form")
    _add_key(seal)
    seal.add_argument("--env", type=Path, required=True, help="a file of lines NAME=VALUE")
    seal.add_argument("--out", type=Path, required=True, help="the sealed environment; must not exist")
    seal.set_defaults(run=_run_seal)


def _add_key(parser: argparse.ArgumentParser) -> None:
    add_state_option(parser)
    parser.add_argument("name", help="the key's name, for example models/claims")


def _run_keys(args: argparse.Namespace) -> int:
    keys = asyncio.run(_read_access(args).ask(_list))
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
    statement = asyncio.run(_state(_read_access(args), args.name, args.epoch))
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
    epoch = asyncio.run(_rotate(_read_access(args), args.name, args.epoch))
    print(f"{args.name}: epoch {epoch} is the newest")
    return 0


def _run_seal(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    variables = read_variables(args.env)
    statement = asyncio.run(_state(_read_access(args), args.name, 0))
    key = serialization.load_der_public_key(statement.public_key)
    if not isinstance(key, X25519PublicKey):
        raise InputUnreadable(f"{args.name} is for {statement.algorithm}: an environment is sealed to an x25519 key")
    write_output(args.out, seal_environment(variables, key.public_bytes_raw()))
    print(f"{args.out}: {len(variables)} variables for {', '.join(sorted(statement.roles))}, epoch {statement.epoch}")
    return 0


def read_variables(path: Path) -> dict[str, str]:
    """Read lines NAME=VALUE; empty ones and those that begin with # are passed over. Raises `InputUnreadable`."""
    variables: dict[str, str] = {}
    try:
        # `splitlines` would also break a value at characters that only Unicode takes for the end of a line.
        lines = read_input(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputUnreadable(f"{path} is not UTF-8") from error
    for number, ended in enumerate(lines, 1):
        line = ended.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or name in variables:
            raise InputUnreadable(f"{path}, line {number}: not NAME=VALUE, or a name for the second time")
        variables[name] = value
    return variables


def _read_access(args: argparse.Namespace) -> KmsAccess:
    return read_kms_access(layout_of(args).mesh_file)


async def _list(stub: pb_grpc.KmsServiceStub, timeout: float) -> list[pb.KeyDescription]:
    keys: list[pb.KeyDescription] = []
    after = ""
    while True:
        page = await stub.ListKeys(pb.ListKeysRequest(after=after), timeout=timeout)
        keys.extend(page.keys)
        after = page.next_after
        if not after:
            return keys


async def _state(access: KmsAccess, name: str, epoch: int) -> KeyStatement:
    request = pb.GetPublicKeyRequest(name=name, epoch=epoch)

    async def ask(stub: pb_grpc.KmsServiceStub, timeout: float) -> pb.GetPublicKeyResponse:
        return await stub.GetPublicKey(request, timeout=timeout)

    stated = await access.ask(ask)
    statement = verify_key_statement(stated.statement, stated.statement_signature, access.ca_spki)
    if (statement.trust_domain, statement.name) != (access.trust_domain, name) or epoch not in (0, statement.epoch):
        raise StatementOfAnother(f"the KMS stated {statement.name}, epoch {statement.epoch}")
    return statement


async def _rotate(access: KmsAccess, name: str, epoch: int | None) -> int:
    # Before any instance is asked to rotate: each MUST be asked for the same epoch.
    if epoch is None:
        newest = next((key.newest_epoch for key in await access.ask(_list) if key.name == name), 1)
        epoch = newest + 1
    request = pb.RotateKeyRequest(name=name, epoch=epoch)

    async def ask(stub: pb_grpc.KmsServiceStub, timeout: float) -> pb.RotateKeyResponse:
        return await stub.RotateKey(request, timeout=timeout)

    await access.ask(ask)
    return epoch


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
