"""Responsible for judging what evidence claims beyond its measurement: GPU evidence and role claims (steps 10 and 11).

A claim counts because the measured code made it and the quote binds it; policy still says which are acceptable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.evidence import Evidence
from libs.tee.rules import RoleRules

_NODE = "node"


class GpuEvidenceMissing(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_EVIDENCE_MISSING"


class GpuEvidenceNotSupported(MeshError):
    """The role needs GPU evidence, and this verifier cannot prove any."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_EVIDENCE_NOT_SUPPORTED"


class RoleMismatch(MeshError):
    """The measured code claims another role than the one it is asked to prove."""

    code = Code.PERMISSION_DENIED
    reason = "ROLE_MISMATCH"


class ClaimsMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "CLAIMS_MALFORMED"


class GpuEvidenceNotBound(MeshError):
    """The GPU evidence is not the one whose digest the claims hold."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_EVIDENCE_NOT_BOUND"


class ModelNotAllowed(MeshError):
    """Policy lists no such model, or not with these weights."""

    code = Code.PERMISSION_DENIED
    reason = "MODEL_NOT_ALLOWED"


def verify_gpu(evidence: Evidence, rules: RoleRules) -> None:
    if not rules.gpu_required:
        return
    if evidence.gpu_evidence is None:
        raise GpuEvidenceMissing(f"role {rules.role} needs GPU evidence")
    raise GpuEvidenceNotSupported("GPU evidence cannot be verified here, and what is unknown is refused")


def verify_claims(evidence: Evidence, rules: RoleRules) -> bool:
    """Return whether the claims name models, all of them allowed."""
    claims = evidence.claims
    if claims.get("role") != rules.role:
        raise RoleMismatch(f"the evidence does not claim the role {rules.role}")
    stated = claims.get("gpu_evidence_sha256")
    actual = None if evidence.gpu_evidence is None else hashlib.sha256(jcs.dumps(evidence.gpu_evidence)).hexdigest()
    if stated != actual:
        raise GpuEvidenceNotBound("the GPU evidence is not the one that the claims state")
    if rules.role != _NODE:
        return False
    models = _models(claims)
    for model_id, weights in models:
        if weights not in rules.models.get(model_id, frozenset()):
            raise ModelNotAllowed(f"policy does not allow model {model_id} with weights {weights}")
    return bool(models)


def _models(claims: Mapping[str, Any]) -> list[tuple[str, str]]:
    entries = claims.get("models")
    if not isinstance(entries, list):
        raise ClaimsMalformed("a node claims a list of models")
    names = frozenset({"id", "weights_sha256"})
    try:
        models = [shape.members(entry, names, "model") for entry in entries]
        return [
            (shape.text(model["id"], "model id"), shape.binary(model["weights_sha256"], "weights_sha256", 32).hex())
            for model in models
        ]
    except ValueError as error:
        raise ClaimsMalformed(str(error)) from error
