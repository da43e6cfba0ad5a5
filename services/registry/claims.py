"""It is responsible for what a node's evidence claims of it: models, engine, region. None of it is a caller's word."""

from __future__ import annotations

import re
from typing import Any

from libs.errors import Code, MeshError
from libs.identity.lease import Lease
from services.registry.providers import ENGINE_NAME, REGION, Engine

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ClaimMalformed(MeshError):
    """The evidence claims something of the node that no reader would understand."""

    code = Code.INVALID_ARGUMENT
    reason = "CLAIM_MALFORMED"


def claimed_models(node: Lease) -> tuple[tuple[str, str], ...]:
    """Return (id, SHA-256 of the weights), in order of the id; the appraisal has checked their shape and policy."""
    models = node.appraisal.workload_claims.get("models", [])
    return tuple(sorted((model["id"], model["weights_sha256"]) for model in models))


def claimed_engine(node: Lease) -> Engine:
    """Raises `ClaimMalformed`."""
    return Engine(
        name=_optional(node, "engine", ENGINE_NAME), arguments_sha256=_optional(node, "engine_args_sha256", _DIGEST)
    )


def claimed_region(node: Lease) -> str:
    """Return "" when the evidence names none. Raises `ClaimMalformed`."""
    return _optional(node, "region", REGION)


def _optional(node: Lease, name: str, pattern: re.Pattern[str]) -> str:
    claimed: Any = node.appraisal.workload_claims.get(name)
    if claimed is None:
        return ""
    if not isinstance(claimed, str) or not pattern.fullmatch(claimed):
        raise ClaimMalformed(f"the evidence claims a {name} that is none")
    return claimed
