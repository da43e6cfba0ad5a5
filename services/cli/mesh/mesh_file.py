"""It is responsible for mesh.json: everything that a client, an operator or a test needs to use a local mesh.

It is there while the mesh serves and names files by absolute paths. It holds an API key, so its owner alone may read
it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.files import write_durably


@dataclass(frozen=True, slots=True)
class MeshDescription:
    """The members of mesh.json. Addresses are host:port, files absolute paths."""

    router_url: str
    """https://host:port; an OpenAI client's base_url is this and "/v1"."""
    router_ca: Path
    """PEM of the CA of the router's outward certificate."""
    router_grpc: str
    ledger_grpc: str
    ledger_others: tuple[str, ...]
    """Of the log's other members, where it has several."""
    ledger_http: str
    """https://host:port."""
    ledger_vkey: str
    """Verifier key of the ledger's checkpoints, in C2SP's text form."""
    witness_url: str
    """https://host:port of the witness that cosigns them."""
    witness_vkey: str
    """Verifier key of its cosignatures, in C2SP's text form."""
    witness_ca: Path
    """PEM of the witness's own certificate."""
    registry_grpc: tuple[str, ...]
    """Of each instance, the preferred one first."""
    attestation_grpc: str
    kms_grpc: tuple[str, ...]
    """Of each instance, the preferred one first."""
    mesh_ca: Path
    """PEM of the mesh CA."""
    operator_cert: Path
    operator_key: Path
    operator_public_keys: tuple[str, ...]
    """Ed25519, hexadecimal: who signs the policy."""
    operator_threshold: int
    policy: Path
    """The signed policy in force."""
    api_key: str
    model: str
    vendor_root: Path
    """PEM of the software TEE's vendor root."""
    pccs_url: str
    trust_domain: str
    services: Mapping[str, int | None]
    """Process id of each service."""

    def document(self) -> bytes:
        """Return the file's content."""
        members: dict[str, Any] = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "services"
        }
        members["services"] = {name: {"pid": pid} for name, pid in self.services.items()}
        return json.dumps(members, indent=2).encode() + b"\n"


def write_mesh_file(path: Path, description: MeshDescription) -> None:
    """Write mesh.json, whole or not at all."""
    write_durably(path, description.document())


def remove_mesh_file(path: Path) -> None:
    """Remove mesh.json, so that nobody takes a mesh that ended for one that serves."""
    path.unlink(missing_ok=True)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
