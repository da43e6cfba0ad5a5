"""It is responsible for who runs in a local mesh: the services, in the order in which they start, and their names."""

from __future__ import annotations

import sys
from pathlib import Path

DEVTEE = "devtee"
SERVICES = ("attestation", "kms", "broker", "ledger", "registry", "node", "router")
"""In the order of starting. None waits for another: each retries until those it needs are there."""

TRUST_DOMAIN = "mesh.local"
INSTANCE = "local"
"""The one instance that each service has here."""

SOURCE_ROOT = Path(__file__).parents[2]
"""Where `services` and `libs` are: what a local service measures is what lies here, and what it runs."""


def command(service: str, config: Path) -> tuple[str, ...]:
    """Return the command that runs a service. Its working folder MUST be `SOURCE_ROOT`, which `-m` searches first."""
    return (sys.executable, "-m", f"services.{service}", str(config))
