"""It is responsible for who runs in a local mesh: the services, in the order in which they start, and their names."""

from __future__ import annotations

import sys
from pathlib import Path

from libs.policy.vocabulary import JOB

DEVTEE = "devtee"
SERVICES = ("attestation", "kms", "broker", "ledger", "registry", "node", "router")
"""In the order of starting. None waits for another: each retries until those it needs are there."""

KMS_REPLICA = "kms-2"
"""A second instance of the KMS, where one is asked for: it joins the first."""

LEDGER_OTHERS = ("ledger-2", "ledger-3")
"""The other members of the log, where they are asked for."""

JOBS = ("job-1", "job-2", "job-3", "job-4")
"""Guests in which stages of pipelines are run, where they are asked for. `teemesh pipeline record` is all they run."""

WITNESS = "witness"
"""Cosigns the log's checkpoints. It is no member of the mesh: no guest agent, no certificate of the mesh's CA."""

TRUST_DOMAIN = "mesh.local"
INSTANCE = "local"
"""The one instance that each service has here, the KMS's second one, the log's other members and jobs apart."""

SOURCE_ROOT = Path(__file__).parents[3]
"""Where `services` and `libs` are: what a local service measures is what lies here, and what it runs."""


def processes(*, kms_replica: bool, ledger_members: int = 1) -> tuple[str, ...]:
    """Return the names of what runs, in the order of starting."""
    replicas = (KMS_REPLICA,) if kms_replica else ()
    return (*SERVICES, *replicas, *LEDGER_OTHERS[: ledger_members - 1])


def role_of(name: str) -> str:
    """Return the role, and so the code, of what runs under a name."""
    if name == KMS_REPLICA:
        return "kms"
    if name in JOBS:
        return JOB
    return "ledger" if name in LEDGER_OTHERS else name


def instance_of(name: str) -> str:
    """Return its name within its role."""
    return name if name in (KMS_REPLICA, *LEDGER_OTHERS, *JOBS) else INSTANCE


def command(service: str, config: Path) -> tuple[str, ...]:
    """Return the command that runs a service. Its working folder MUST be `SOURCE_ROOT`, which `-m` searches first."""
    return (sys.executable, "-m", f"services.{role_of(service)}", str(config))
