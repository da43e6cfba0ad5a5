"""It is responsible for `teemesh status`: what each service of a running mesh answers to an operator, over mTLS."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table
from rich.text import Text
from teemesh.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc, replication_pb2, replication_pb2_grpc

from libs.errors import MeshError
from libs.identity.certificate import der_of, spki_of
from libs.policy.statement import Statement, verify_statement
from libs.rpc.errors import to_mesh_error
from libs.transparency.checkpoint import Checkpoint, verify
from libs.transparency.note import VerifierKey
from services.cli.mesh.kms_access import KmsAccess
from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.mesh.ports import HOST, read_ports
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.roster import KMS_REPLICA, LEDGER_OTHERS, processes, role_of
from services.cli.mesh.service_access import ServiceAccess
from services.cli.mesh.witnessed import WitnessedAccess, ask_witnessed, read_witnessed_access
from services.cli.terminal.inputs import InputUnreadable, read_json

_TIMEOUT_SECONDS = 5.0
YOUNG_SECONDS = 3600
"""Members renew their evidence at half the life of an hour-long certificate."""
_MAX_AGE_SECONDS = 2**32 - 1
_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to ask: the parts of mesh.json, and the addresses of the mesh listeners."""

    trust_domain: str
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    ledger_vkey: str
    pids: Mapping[str, int]
    addresses: Mapping[str, str]
    witnessed: WitnessedAccess | None = None
    """Where what is witnessed of the log is shown."""

    @property
    def processes(self) -> Sequence[str]:
        """The services' names, the second KMS's where it runs."""
        members = 1 + sum(name in self.pids for name in LEDGER_OTHERS)
        return processes(kms_replica=KMS_REPLICA in self.pids, ledger_members=members)

    @property
    def kms(self) -> KmsAccess:
        """Whichever instance of the KMS runs. Raises `InputUnreadable`."""
        return KmsAccess(tuple(self._service(name) for name in self.processes if role_of(name) == "kms"))

    def channel(self, role: str) -> grpc.aio.Channel:
        """Raises `InputUnreadable` when the state folder keeps no address of the role."""
        return self._service(role).channel()

    def _service(self, name: str) -> ServiceAccess:
        if name not in self.addresses:
            raise InputUnreadable(f"no address of {name} is kept: restart the mesh with teemesh up")
        return ServiceAccess(
            role=role_of(name),
            target=self.addresses[name],
            trust_domain=self.trust_domain,
            mesh_ca_pem=self.ca_pem,
            certificate_pem=self.certificate_pem,
            key_pem=self.key_pem,
        )


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What one service answers."""

    role: str
    serving: bool
    detail: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh status`."""
    parser = subparsers.add_parser("status", help="ask every service of a running mesh how it is")
    add_state_option(parser)
    parser.add_argument(
        "--evidence-age-seconds",
        type=_age,
        default=YOUNG_SECONDS,
        metavar="N",
        help="count leases that rest on evidence younger than this (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    layout = layout_of(args)
    if not layout.mesh_file.exists():
        raise InputUnreadable(f"no mesh serves from {layout.root}: start one with teemesh up")
    ports = {role: f"{HOST}:{port}" for role, port in read_ports(layout.ports).items()}
    access = read_mesh(layout.mesh_file, ports)
    return asyncio.run(show(access, Console(), args.evidence_age_seconds))


def read_mesh(path: Path, addresses: Mapping[str, str]) -> Access:
    """Read mesh.json and the files that it names. Raises `InputUnreadable`."""
    mesh = MeshReader(path)
    return Access(
        trust_domain=mesh.text("trust_domain"),
        ca_pem=mesh.file("mesh_ca"),
        certificate_pem=mesh.file("operator_cert"),
        key_pem=mesh.file("operator_key"),
        ledger_vkey=mesh.text("ledger_vkey"),
        pids=_pids(path),
        addresses=addresses,
        witnessed=read_witnessed_access(mesh),
    )


def _pids(path: Path) -> Mapping[str, int]:
    """What mesh.json says of process ids: for people, so what is not there is not shown."""
    services = read_json(path).get("services")
    entries = services.items() if isinstance(services, dict) else ()
    return {role: entry["pid"] for role, entry in entries if isinstance(entry, dict) and entry.get("pid")}


def _age(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= _MAX_AGE_SECONDS):
        raise argparse.ArgumentTypeError("give seconds, 1 or more")
    return int(text)


async def show(access: Access, console: Console, evidence_age_seconds: int = YOUNG_SECONDS) -> int:
    """Ask everyone at once and print the answers; return 0 when all serve."""
    answers = await asyncio.gather(*(ask_health(access, name) for name in access.processes))
    ledgers = [name for name in access.processes if role_of(name) == "ledger"]
    facts = await asyncio.gather(
        _fact(ask_policy(access)),
        _fact(ask_log(access)),
        *(_fact(ask_member(access, name)) for name in ledgers if len(ledgers) > 1),
        *(() if access.witnessed is None else [_fact(ask_witnessed(access.witnessed))]),
        _fact(ask_coverage(access, evidence_age_seconds)),
    )
    table = Table(box=None, header_style="bold")
    for column in ("service", "state", "pid", "address", "detail"):
        table.add_column(column)
    for answer in answers:
        state = Text("serving", style="green") if answer.serving else Text("not serving", style="red")
        pid = str(access.pids.get(answer.role) or "-")
        table.add_row(answer.role, state, pid, access.addresses.get(answer.role, "-"), Text(answer.detail))
    console.print(table)
    for fact in facts:
        console.print(Text(fact), soft_wrap=True)
    return 0 if all(answer.serving for answer in answers) else 1


async def ask_health(access: Access, role: str) -> ServiceStatus:
    """Return what gRPC's health service says of a role; an answer that does not come is one too."""
    if role not in access.addresses:
        return ServiceStatus(role, serving=False, detail="no address is kept")
    async with access.channel(role) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            refusal = to_mesh_error(error)
            return ServiceStatus(role, serving=False, detail=f"{refusal.reason}: {refusal}")
    return ServiceStatus(role, serving=answer.status == _SERVING, detail="")


async def ask_policy(access: Access) -> str:
    """Return which policy the KMS states to be in force, its signature verified. Raises `MeshError`."""

    async def ask(stub: kms_pb2_grpc.KmsServiceStub, timeout: float) -> kms_pb2.GetStatementResponse:
        return await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=timeout)

    response = await access.kms.ask(ask, _TIMEOUT_SECONDS)
    statement: Statement = verify_statement(response.statement, response.signature, _ca_spki(access))
    age = time.time() - statement.time_ms / 1000
    revoked = f"{statement.revocation} revocations"
    return f"policy: version {statement.version}, digest {statement.digest.hex()}, {revoked}, stated {age:.0f} s ago"


async def ask_log(access: Access) -> str:
    """Return how much the log's newest checkpoint holds, its signature verified. Raises `MeshError`."""
    async with access.channel("ledger") as channel:
        try:
            response = await ledger_pb2_grpc.LedgerServiceStub(channel).GetCheckpoint(
                ledger_pb2.GetCheckpointRequest(), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise to_mesh_error(error) from error
    checkpoint: Checkpoint = verify(response.checkpoint, VerifierKey.parse(access.ledger_vkey))
    return f"log: {checkpoint.origin} has {checkpoint.size} entries, root {checkpoint.root.hex()}"


async def ask_member(access: Access, name: str) -> str:
    """Return which part a member of the log has now, and how much it holds. Raises `MeshError`."""
    async with access.channel(name) as channel:
        try:
            standing = await replication_pb2_grpc.LedgerReplicationServiceStub(channel).GetStanding(
                replication_pb2.GetStandingRequest(), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise to_mesh_error(error) from error
    held = f"holds {standing.size} entries, knows of {standing.committed} that a majority holds"
    if standing.role != replication_pb2.MEMBER_ROLE_WRITER:
        return f"{name}: follows {standing.writer or 'nobody'} in epoch {standing.epoch}, {held}"
    others = "".join(
        f"\n  {other.instance}: {max(standing.size - other.held, 0)} behind" + ("" if other.answers else ", silent")
        for other in standing.others
    )
    return f"{name}: writes in epoch {standing.epoch}, {held}{others}"


async def ask_coverage(access: Access, evidence_age_seconds: int) -> str:
    """Return what share of the nodes' leases rests on evidence that is accepted and young. Raises `MeshError`."""
    async with access.channel("attestation") as channel:
        try:
            coverage = await attestation_pb2_grpc.AttestationServiceStub(channel).GetCoverage(
                attestation_pb2.GetCoverageRequest(max_age_seconds=evidence_age_seconds), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise to_mesh_error(error) from error
    watched = "" if coverage.registry_watched else ", and the registry is not heard now"
    uncovered = "".join(f"\n  {each.spiffe_id}: {each.reason}" for each in coverage.uncovered)
    return (
        f"evidence: {coverage.covered} of {coverage.live_leases} live leases rest on accepted evidence younger than "
        f"{evidence_age_seconds} s{watched}{uncovered}"
    )


async def _fact(answer: Coroutine[Any, Any, str]) -> str:
    try:
        return await answer
    except MeshError as error:
        return f"{error.reason}: {error}"


def _ca_spki(access: Access) -> bytes:
    return spki_of(x509.load_der_x509_certificate(der_of(access.ca_pem)).public_key())
