"""It is responsible for `teemesh kms`: what operators do with keys, and what the log says was done.

keys         list the keys that have an epoch, who may use them, since when
public-key   print a key's public half, after checking that the mesh CA says whose it is
rotate       begin a key's next epoch; the older ones go on to open what they sealed
seal         seal environment secrets to a workload's key, in dstack's form
retire       draft the order to refuse a key for ever
join         draft the order to give another instance of the KMS the root
approve      add one operator's signature to an order
submit       have the KMS carry out an order that enough operators signed
release-log  print every decision about keys that the ledger holds
verify       walk from an agent's signature to the measurement of the workload, offline
"""

from __future__ import annotations

import argparse
import asyncio

from rich.console import Console

from services.cli.kms import keys as kms_keys
from services.cli.kms import verify as kms_verify
from services.cli.kms.release_log import print_release_log
from services.cli.mesh import orders as kms_orders
from services.cli.mesh.layout import add_state_option


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh kms`."""
    parser = subparsers.add_parser("kms", help="see, rotate and retire the mesh's keys")
    commands = parser.add_subparsers(dest="kms_command", required=True)
    kms_keys.add_commands(commands)
    kms_orders.add_commands(commands)
    release_log = commands.add_parser("release-log", help="print the decisions about keys in the ledger")
    add_state_option(release_log)
    release_log.add_argument("--follow", action="store_true", help="go on as the log grows")
    release_log.add_argument("--json", action="store_true", help="one JSON object a line")
    release_log.set_defaults(run=_run_release_log)
    kms_verify.add_command(commands)


def _run_release_log(args: argparse.Namespace) -> int:
    asyncio.run(print_release_log(args.state, Console(), follow=args.follow, as_json=args.json))
    return 0
