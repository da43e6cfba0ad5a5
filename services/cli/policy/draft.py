"""It is responsible for drafting a policy from what an operator has: reference values, app-composes, keys and models.

A draft is plain JSON that people read and edit before they sign it; what it may contain is decided by
`libs.policy.document`, which reads every draft before it leaves here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.compose import compose_hash, read_anchors
from libs.policy.document import NO_PREVIOUS, Policy, read
from libs.policy.releases import cache_salt_key
from libs.policy.signatures import SignedPolicy, parse_signed, sign, with_signature
from libs.tee.tcb import TcbRule
from services.cli.mesh.operators import public_key
from services.cli.policy.reference import DeployedCompose, Reference
from services.cli.terminal.inputs import read_input

LIFETIME_SECONDS = 30 * 86400
"""How long a policy is valid unless its author says otherwise."""

EVIDENCE_SECONDS = 3900
"""How old evidence and its challenge may be unless the author says otherwise: a certificate's hour, and slack."""

STRICT_TCB = TcbRule(
    statuses=frozenset({"UpToDate"}),
    refused_advisories=frozenset(),
    grace_seconds=0,
    minimum_evaluation_number=0,
    maximum_collateral_age_seconds=30 * 86400,
)
"""The rule unless the author says otherwise: patched machines only, judged by collateral of the last 30 days."""

_BACKDATED_SECONDS = 60  # What the mesh tolerates between two clocks.

_KEY_RELEASES: tuple[dict[str, Any], ...] = tuple(
    {"name": name, "roles": ["ledger"]} for name in ("ledger-keyring", "ledger-resume", "ledger-vault/*")
)


_SALTS_ROTATE_DAYS = 90

_KEPT = ("constraints", "foreign_providers", "retention_months")
"""What nothing that an author gives says anew; to leave it out would allow more."""


class DraftInconsistent(MeshError):
    """What was given does not make one mesh."""

    code = Code.INVALID_ARGUMENT
    reason = "POLICY_DRAFT_INCONSISTENT"


class OperatorKeyNotNamed(MeshError):
    """The key is none of those whose signature on this policy counts."""

    code = Code.PERMISSION_DENIED
    reason = "OPERATOR_KEY_NOT_NAMED"


def draft_policy(
    *,
    trust_domain: str,
    operator_keys: Sequence[bytes],
    threshold: int,
    tenant_admin_key: bytes,
    references: Sequence[Reference],
    composes: Sequence[DeployedCompose],
    models: Mapping[str, Sequence[str]],
    now: int,
    lifetime_seconds: int = LIFETIME_SECONDS,
    tcb: TcbRule = STRICT_TCB,
    gpu_roles: frozenset[str] = frozenset(),
    allowed_devices: Sequence[str] = (),
    revoked_devices: Sequence[str] = (),
    lifted_revocations: Sequence[str] = (),
    retention_months: int | None = None,
    challenge_max_age_seconds: int = EVIDENCE_SECONDS,
    evidence_max_age_seconds: int = EVIDENCE_SECONDS,
    key_releases: Sequence[Mapping[str, Any]] = (),
    previous: Policy | None = None,
) -> dict[str, Any]:
    """Return an unsigned policy as JSON: version 1, or the successor of `previous`.

    Each compose is allowed, for the role it was measured with, on the platform of each reference. `models` maps a
    model id to the SHA-256 digests of its weights, hexadecimal. `key_releases` are rules beside those for the
    ledger's keys and for the salts of each node compose. What `previous` lifts stays lifted, what it demands for
    tenants and of foreign providers stays demanded, and what it says of retention stays unless `retention_months` says
    otherwise. Raises `DraftInconsistent` when a compose belongs to another mesh, or obeys other operators and is none
    that `previous` allows already, and what reading the draft raises.
    """
    measurements: dict[str, list[dict[str, str]]] = {}
    nodes: set[str] = set()
    for compose in composes:
        role = _role_in_this_mesh(compose, trust_domain, operator_keys, threshold, previous)
        if role == "node":
            nodes.add(compose_hash(compose.text))
        allowed = measurements.setdefault(role, [])
        for reference in references:
            allowed.extend(measurement.to_json() for measurement in reference.measurements(compose))
    if unused := gpu_roles - measurements.keys():
        raise DraftInconsistent(f"a GPU is required of {', '.join(sorted(unused))}, for which no compose is given")
    draft = {
        "v": 1,
        "version": 1 if previous is None else previous.version + 1,
        "previous": (NO_PREVIOUS if previous is None else previous.digest).hex(),
        "not_before": now - _BACKDATED_SECONDS,
        "not_after": now + lifetime_seconds,
        "trust_domain": trust_domain,
        "operators": {"keys": [key.hex() for key in operator_keys], "threshold": threshold},
        "vendor_roots": _vendor_roots(references),
        "tcb": {
            "statuses": sorted(tcb.statuses),
            "refused_advisories": sorted(tcb.refused_advisories),
            "grace_seconds": tcb.grace_seconds,
            "minimum_evaluation_number": tcb.minimum_evaluation_number,
            "maximum_collateral_age_seconds": tcb.maximum_collateral_age_seconds,
        },
        "td_attributes": sorted({reference.td_attributes for reference in references}),
        "devices": {"allowed": list(allowed_devices), "revoked": list(revoked_devices)},
        "roles": {
            role: {"measurements": allowed, "gpu_required": role in gpu_roles}
            for role, allowed in sorted(measurements.items())
        },
        "models": {model: list(digests) for model, digests in models.items()},
        "key_releases": [*_KEY_RELEASES, *_salt_rules(nodes), *key_releases],
        "tenant_admin_key": tenant_admin_key.hex(),
        "challenge_max_age_seconds": challenge_max_age_seconds,
        "evidence_max_age_seconds": evidence_max_age_seconds,
        "revocations": [],
    }
    if lifted := {*lifted_revocations, *_lifted_by(previous)}:
        draft["lifted_revocations"] = sorted(lifted)
    if previous is not None:
        before = jcs.loads_object(previous.document)
        draft |= {name: before[name] for name in _KEPT if name in before}
    if retention_months is not None:
        draft["retention_months"] = retention_months
    if gpus := [reference for reference in references if reference.gpu is not None]:
        draft["gpu"] = _gpu(gpus)
    elif gpu_roles:
        raise DraftInconsistent("a GPU is required, and no reference says who vouches for one")
    read(draft)
    return draft


def unsigned(draft: Mapping[str, Any]) -> bytes:
    """Return a draft in the signed form, without signatures yet: what `sign_policy` takes."""
    return jcs.dumps({"policy": dict(draft), "signatures": []})


def sign_policy(signed: bytes, key: Ed25519PrivateKey, previous: Policy | None = None) -> bytes:
    """Return the signed form with one operator's signature added.

    A policy that changes the operators needs signatures of the outgoing ones too: they sign with `previous` given.
    Raises `PolicyMalformed`, also when this key signed already, and `OperatorKeyNotNamed`.
    """
    document = parse_signed(signed)
    named = {*document.policy.operator_keys, *(previous.operator_keys if previous else ())}
    if public_key(key) not in named:
        raise OperatorKeyNotNamed(f"{public_key(key).hex()} is no operator of this policy, nor of a previous one given")
    return with_signature(document, sign(document.policy.document, key)).document


def read_signed(path: Path) -> SignedPolicy:
    """Read a signed policy from a file without verifying it. Raises `InputUnreadable`, `PolicyMalformed`."""
    return parse_signed(read_input(path))


def _salt_rules(nodes: Collection[str]) -> list[dict[str, Any]]:
    """Give each node compose a key of its own, from which it makes the salts of its prefix cache."""
    return [
        {
            "name": cache_salt_key(compose),
            "roles": ["node"],
            "compose_hashes": [compose],
            "rotate_after_days": _SALTS_ROTATE_DAYS,
        }
        for compose in sorted(nodes)
    ]


def _lifted_by(previous: Policy | None) -> set[str]:
    return set() if previous is None else {each.hex() for each in previous.lifted_revocations}


def _vendor_roots(references: Sequence[Reference]) -> list[dict[str, Any]]:
    roots = {reference.vendor_root: ("tdx", reference.development) for reference in references}
    for reference in references:
        if reference.gpu is not None:
            roots[reference.gpu.device_root] = ("nvidia-gpu", reference.development)
    return [
        {
            "name": f"{'development' if development else 'vendor'}-{hashlib.sha256(certificate).hexdigest()[:8]}",
            "tee_type": tee_type,
            "certificate": certificate.hex(),
            "development": development,
        }
        for certificate, (tee_type, development) in roots.items()
    ]


def _gpu(references: Sequence[Reference]) -> dict[str, Any]:
    """Say whose word on GPUs counts. The GPUs' own reports are asked for too, because a guest always has them."""
    issuers: dict[str, dict[str, Any]] = {}
    for reference in references:
        if reference.gpu is not None:
            new = {"issuer": reference.gpu.issuer, "development": reference.development, "keys": {}, "roots": []}
            issuer = issuers.setdefault(reference.gpu.issuer, new)
            issuer["keys"].update(reference.gpu.keys)
            issuer["roots"].extend(root for root in reference.gpu.roots if root not in issuer["roots"])
    return {
        "issuers": list(issuers.values()),
        "allowed_ueids": [],
        "revoked_ueids": [],
        "allowed_models": [],
        "maximum_token_age_seconds": EVIDENCE_SECONDS,
        "reports_required": True,
    }


def _role_in_this_mesh(
    compose: DeployedCompose,
    trust_domain: str,
    operator_keys: Sequence[bytes],
    threshold: int,
    previous: Policy | None,
) -> str:
    anchors = read_anchors(compose.text.decode("utf-8", errors="surrogateescape"))
    if anchors.trust_domain != trust_domain:
        raise DraftInconsistent(f"the compose of {anchors.role} is measured for the mesh {anchors.trust_domain}")
    measured = (set(anchors.operator_keys), anchors.operator_threshold)
    if measured != (set(operator_keys), threshold) and not _allows(previous, anchors.role, compose):
        raise DraftInconsistent(f"the compose of {anchors.role} is measured with other operators than this policy's")
    return anchors.role


def _allows(previous: Policy | None, role: str, compose: DeployedCompose) -> bool:
    """Say whether the version before allows the compose already: what runs follows the chain to new operators."""
    grant = None if previous is None else previous.roles.get(role)
    return grant is not None and compose_hash(compose.text) in {each.compose_hash for each in grant.measurements}
