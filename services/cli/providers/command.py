"""It is responsible for `teemesh providers`: which nodes serve, which of what is said of them holds, who may go on.

list    list the nodes with a live lease, by the registry's word
show    hold what the registry says of a node against its evidence and its certificate
drain   keep new work from a node until it is resumed
resume  end an operator's drain
revoke  withdraw a node at once, as one operator alone: its name, or what its evidence proves
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

from rich.console import Console
from teemesh.registry.v1 import registry_pb2 as pb

from libs.audit.session import SessionTerms
from services.cli.mesh.options import add_mesh_options
from services.cli.mesh.registry_access import RegistryAccess, RegistryClient, read_registry_access, spiffe_id_of
from services.cli.policy.in_force import read_in_force
from services.cli.providers.checks import ProviderProof, check_provider
from services.cli.providers.gathering import gather
from services.cli.providers.report import ProviderReport, listed_json, print_provider, print_providers
from services.cli.providers.revoke import add_revoke
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable
from services.cli.terminal.words import plain

_STATES = {
    "active": pb.PROVIDER_STATE_ACTIVE,
    "draining": pb.PROVIDER_STATE_DRAINING,
    "drained": pb.PROVIDER_STATE_DRAINED,
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh providers`."""
    parser = subparsers.add_parser("providers", help="see, drain and revoke the nodes that serve")
    commands = parser.add_subparsers(dest="providers_command", required=True)
    listing = commands.add_parser("list", help="list the nodes with a live lease")
    listing.add_argument("--model", default="", help="only those that serve it")
    listing.add_argument("--state", choices=sorted(_STATES), help="only those in this state")
    listing.add_argument("--region", default="", help="only those that claim it")
    _add_common(listing, "one JSON object a line")
    listing.set_defaults(run=_run_list)
    showing = commands.add_parser("show", help="hold what the registry says of a node against proof")
    _add_node(showing)
    _add_common(showing, "one JSON object, for machines")
    showing.set_defaults(run=lambda args: usable(_run_show, args))
    draining = commands.add_parser("drain", help="keep new work from a node")
    _add_node(draining)
    draining.add_argument("--reason", required=True, metavar="TEXT", help="for people; every operator sees it")
    add_mesh_options(draining)
    draining.set_defaults(run=_run_drain)
    resuming = commands.add_parser("resume", help="end an operator's drain")
    _add_node(resuming)
    add_mesh_options(resuming)
    resuming.set_defaults(run=_run_resume)
    revoking = commands.add_parser("revoke", help="withdraw a node at once, as one operator")
    _add_node(revoking)
    add_revoke(revoking)
    add_mesh_options(revoking)


def _add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", help="its SPIFFE ID, or its instance's name")


def _add_common(parser: argparse.ArgumentParser, json_help: str) -> None:
    add_mesh_options(parser)
    parser.add_argument("--json", action="store_true", help=json_help)


def _run_list(args: argparse.Namespace) -> int:
    state = _STATES[args.state] if args.state else pb.PROVIDER_STATE_UNSPECIFIED
    providers = asyncio.run(
        _list(read_registry_access(args.mesh), args.timeout_seconds, args.model, state, args.region)
    )
    console = Console()
    if args.json:
        for provider in providers:
            console.out(json.dumps(listed_json(provider)), highlight=False)
        return 0
    print_providers(providers, time.time(), console)
    return 0


def _run_show(args: argparse.Namespace) -> int:
    report = asyncio.run(examine(args.mesh, args.node, args.timeout_seconds))
    if args.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_provider(report, Console())
    return ACCEPTED if report.holds else REFUSED


def _run_drain(args: argparse.Namespace) -> int:
    node, provider = asyncio.run(_drain(read_registry_access(args.mesh), args.node, args.reason, args.timeout_seconds))
    load = provider.load
    busy = f"{load.running_requests} running, {load.waiting_requests} waiting"
    print(plain(f"{node}: takes no new work until it is resumed; {busy} when it last said so"))
    return 0


def _run_resume(args: argparse.Namespace) -> int:
    node = asyncio.run(_resume(read_registry_access(args.mesh), args.node, args.timeout_seconds))
    print(f"{node}: no operator drains it")
    return 0


async def examine(mesh: Path, node: str, timeout_seconds: float) -> ProviderReport:
    """Gather what there is about a node, and judge it by what is in force. Raises what keeps it from being judged."""
    access = read_registry_access(mesh)
    spiffe_id = spiffe_id_of(node, access.trust_domain)
    in_force = await read_in_force(mesh, timeout_seconds, time.time())
    gathered = await gather(access, spiffe_id, timeout_seconds)
    proof = ProviderProof(gathered, SessionTerms(in_force.policy, access.ca_spki, int(time.time())))
    return ProviderReport(gathered.provider, in_force, check_provider(proof), proof.appraisal)


async def _list(
    access: RegistryAccess, timeout_seconds: float, model: str, state: pb.ProviderState.ValueType, region: str
) -> list[pb.Provider]:
    return await access.ask(lambda registry: registry.providers(model, state, region), timeout_seconds)


async def _drain(access: RegistryAccess, node: str, reason: str, timeout_seconds: float) -> tuple[str, pb.Provider]:
    spiffe_id = spiffe_id_of(node, access.trust_domain)

    async def ask(registry: RegistryClient) -> pb.Provider:
        await registry.drain(spiffe_id, reason)
        return await registry.provider(spiffe_id)

    return spiffe_id, await access.ask(ask, timeout_seconds)


async def _resume(access: RegistryAccess, node: str, timeout_seconds: float) -> str:
    spiffe_id = spiffe_id_of(node, access.trust_domain)
    await access.ask(lambda registry: registry.resume(spiffe_id), timeout_seconds)
    return spiffe_id
