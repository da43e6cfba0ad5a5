"""It is responsible for what the registry keeps of a node, and for its form at rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError


class ProviderRecordMalformed(MeshError):
    """The store holds something that no registry wrote."""

    code = Code.DATA_LOSS
    reason = "PROVIDER_RECORD_MALFORMED"


@dataclass(frozen=True, slots=True)
class Load:
    """What a node last reported: requests running, waiting, and how many it can run at once."""

    running: int = 0
    waiting: int = 0
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class Provider:
    """One node."""

    spiffe_id: str
    endpoint: str
    models: tuple[tuple[str, str], ...]
    """(id, SHA-256 of the weights in hex), in order of the id."""
    evidence_digest: str
    spki_sha256: str
    session_id: str
    lease_until_ms: int
    load: Load = Load()
    draining: bool = False

    def encode(self) -> bytes:
        return jcs.dumps(
            {
                "spiffe_id": self.spiffe_id,
                "endpoint": self.endpoint,
                "models": [{"id": model, "weights_sha256": weights} for model, weights in self.models],
                "evidence_digest": self.evidence_digest,
                "spki_sha256": self.spki_sha256,
                "session_id": self.session_id,
                "lease_until_ms": self.lease_until_ms,
                "load": {
                    "running": self.load.running,
                    "waiting": self.load.waiting,
                    "capacity": self.load.capacity,
                },
                "draining": self.draining,
            }
        )


def decode(data: bytes) -> Provider:
    """Raises `ProviderRecordMalformed`."""
    try:
        value = jcs.loads_object(data)
        load: Mapping[str, Any] = value["load"]
        return Provider(
            spiffe_id=str(value["spiffe_id"]),
            endpoint=str(value["endpoint"]),
            models=tuple((str(model["id"]), str(model["weights_sha256"])) for model in value["models"]),
            evidence_digest=str(value["evidence_digest"]),
            spki_sha256=str(value["spki_sha256"]),
            session_id=str(value["session_id"]),
            lease_until_ms=int(value["lease_until_ms"]),
            load=Load(int(load["running"]), int(load["waiting"]), int(load["capacity"])),
            draining=bool(value["draining"]),
        )
    except (KeyError, TypeError, ValueError, jcs.JsonMalformed) as error:
        raise ProviderRecordMalformed(f"a provider record cannot be read: {error}") from error
