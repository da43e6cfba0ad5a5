"""Responsible for judging what evidence claims beyond its measurement: GPU evidence and role claims (steps 10 and 11).

A claim counts because the measured code made it and the quote binds it; policy still says which are acceptable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.errors import Code, MeshError
from libs.tee import binding, shape
from libs.tee.evidence import Evidence
from libs.tee.nvidia.evidence import GpuVerdict, verify_gpu_evidence
from libs.tee.role import RoleRules
from libs.tee.steps import Note

_NODE = "node"


class GpuEvidenceMissing(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_EVIDENCE_MISSING"


class GpuRuleMissing(MeshError):
    """The role needs GPU evidence, and policy states nothing to judge it by."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_RULE_MISSING"


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


def verify_gpu(evidence: Evidence, rules: RoleRules, now: int, note: Note) -> GpuVerdict | None:
    """Prove the GPU evidence where the role needs it, or where there is some and policy says how to judge it.

    Raises `GpuEvidenceMissing`, `GpuRuleMissing`, `GpuEvidenceNotBound` and what `verify_gpu_evidence` raises.
    """
    note("GPU evidence", None if evidence.gpu_evidence is None else "present", _need(rules))
    _verify_gpu_bound(evidence, note)
    if evidence.gpu_evidence is None:
        if rules.gpu_required:
            raise GpuEvidenceMissing(f"role {rules.role} needs GPU evidence")
        return None
    if rules.gpu is None:
        if rules.gpu_required:
            raise GpuRuleMissing("policy requires GPU evidence and does not say whose tokens count")
        return None
    nonce = binding.gpu_nonce(evidence.challenge.nonce, evidence.spki)
    return verify_gpu_evidence(evidence.gpu_evidence, nonce, rules.gpu, now, note)


def _need(rules: RoleRules) -> str:
    return "some" if rules.gpu_required else "any or none"


def _verify_gpu_bound(evidence: Evidence, note: Note) -> None:
    stated = evidence.claims.get("gpu_evidence_sha256")
    actual = None if evidence.gpu_evidence_digest is None else evidence.gpu_evidence_digest.hex()
    note("SHA-256 of the GPU evidence", actual, stated)
    if stated != actual:
        raise GpuEvidenceNotBound("the GPU evidence is not the one that the claims state")


def verify_claims(evidence: Evidence, rules: RoleRules, note: Note) -> bool:
    """Return whether the claims name models, all of them allowed."""
    claims = evidence.claims
    note("role", claims.get("role"), rules.role)
    if claims.get("role") != rules.role:
        raise RoleMismatch(f"the evidence does not claim the role {rules.role}")
    if rules.role != _NODE:
        return False
    models = _models(claims)
    for model_id, weights in models:
        note(f"weights of {model_id}", weights, rules.models.get(model_id, frozenset()))
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
        read = [
            (shape.text(model["id"], "model id"), shape.binary(model["weights_sha256"], "weights_sha256", 32).hex())
            for model in models
        ]
        if len({model_id for model_id, _ in read}) != len(read):
            raise ValueError("a model is claimed twice")
    except ValueError as error:
        raise ClaimsMalformed(str(error)) from error
    return read
