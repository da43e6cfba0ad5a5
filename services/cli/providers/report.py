"""It is responsible for showing providers: what the registry says of them, apart from what was verified here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text
from teemesh.registry.v1 import registry_pb2 as pb

from libs.client.checks import Check
from libs.tee.appraisal import Appraisal
from services.cli.policy.in_force import InForce
from services.cli.sessions.checks import check_json, proves
from services.cli.terminal.checks import print_checks, print_development
from services.cli.terminal.words import Json, Moment, plain, shown

_STATE_NAMES = {
    pb.PROVIDER_STATE_ACTIVE: "active",
    pb.PROVIDER_STATE_DRAINING: "draining",
    pb.PROVIDER_STATE_DRAINED: "drained",
}
_COLUMNS = ("node", "state", "models", "region", "running", "waiting", "capacity", "cache", "lease", "endpoint")


@dataclass(frozen=True, slots=True)
class ProviderReport:
    """One node: the registry's word, and the checks of it."""

    provider: pb.Provider
    in_force: InForce
    checks: Sequence[Check]
    appraisal: Appraisal | None
    """None: its evidence was refused."""

    @property
    def holds(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Json]:
        policy = self.in_force.document
        return {
            "verified": self.holds,
            "policy": {
                "version": policy.version,
                "digest": policy.digest.hex(),
                "revocations": self.in_force.revocations.number,
                "development_roots": list(policy.development_roots),
            },
            "checks": [check_json(check) for check in self.checks],
            "proven": None if self.appraisal is None else proves(self.appraisal),
            "registry_says": listed_json(self.provider),
        }


def print_providers(providers: Sequence[pb.Provider], now: float, console: Console) -> None:
    """Print a table for people."""
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for provider in providers:
        load = provider.load
        cache = f"{load.kv_cache_permille / 10:g} %" if load.HasField("kv_cache_permille") else "-"
        cells = (
            provider.spiffe_id.rpartition("/")[2],
            _state(provider),
            ", ".join(model.id for model in provider.models) or "-",
            provider.region or "-",
            str(load.running_requests),
            str(load.waiting_requests),
            str(load.capacity),
            cache,
            f"{provider.lease_until_ms / 1000 - now:.0f} s",
            provider.endpoint,
        )
        # Folded rather than cut: names and endpoints are there to be copied.
        table.add_row(*(Text(plain(cell), overflow="fold") for cell in cells))
    console.print(table)


def print_provider(report: ProviderReport, console: Console) -> None:
    """Print the registry's word, then the checks; the last line is the verdict."""
    provider = report.provider
    print_development(report.in_force.document.development_roots, console)
    console.print(Text("the registry says, and nobody else", style="bold"))
    for name, value in _said(provider, time.time()):
        console.print(Text(f"  {name:<10} {plain(value)}"), soft_wrap=True)
    console.print(Text(f"checked here, under policy {report.in_force.words}", style="bold"), soft_wrap=True)
    print_checks(report.checks, console)
    if report.appraisal is None:
        return
    console.print(Text("its evidence proves of whoever holds the key", style="bold"))
    for name, proof in proves(report.appraisal).items():
        console.print(Text(f"  {name:<12} {shown(proof)}"), soft_wrap=True)


def listed_json(provider: pb.Provider) -> dict[str, Json]:
    """What the registry says of a node."""
    load = provider.load
    return {
        "spiffe_id": provider.spiffe_id,
        "endpoint": provider.endpoint,
        "state": _STATE_NAMES.get(provider.state),
        "drained_by": provider.drained_by or None,
        "drain_reason": provider.drain_reason or None,
        "models": [{"id": model.id, "weights_sha256": model.weights_sha256.hex()} for model in provider.models],
        "engine": provider.engine.name or None,
        "engine_args_sha256": provider.engine.arguments_sha256.hex() or None,
        "region": provider.region or None,
        "running": load.running_requests,
        "waiting": load.waiting_requests,
        "capacity": load.capacity,
        "kv_cache_permille": load.kv_cache_permille if load.HasField("kv_cache_permille") else None,
        "lease_until_ms": provider.lease_until_ms,
        "session_id": provider.session_id.hex(),
        "evidence": provider.evidence_digest.hex(),
        "spki_sha256": provider.spki_sha256.hex(),
    }


def _said(provider: pb.Provider, now: float) -> tuple[tuple[str, str], ...]:
    load = provider.load
    busy = f"{load.running_requests} running, {load.waiting_requests} waiting, {load.capacity} at once"
    return (
        ("node", provider.spiffe_id),
        ("state", _state(provider)),
        ("lease", f"until {Moment(provider.lease_until_ms // 1000)}, in {provider.lease_until_ms / 1000 - now:.0f} s"),
        ("load", busy),
        ("models", ", ".join(model.id for model in provider.models) or "none"),
        ("endpoint", provider.endpoint),
        ("session", provider.session_id.hex()),
    )


def _state(provider: pb.Provider) -> str:
    state = _STATE_NAMES.get(provider.state, "unknown")
    if not provider.drained_by:
        return state
    return f"{state} by {provider.drained_by.rpartition('/')[2]}: {provider.drain_reason}"
