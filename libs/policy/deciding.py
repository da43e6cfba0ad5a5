"""It is responsible for naming the member of the policy that decides: from a refusal's stable reason to what operators
can change.

A reason that is not listed here is no decision of theirs: the evidence itself is broken, old or not genuine, and no
policy would accept it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from libs import jcs
from libs.policy.document import Policy
from libs.policy.hardware import SNP, TDX


@dataclass(frozen=True, slots=True)
class Deciding:
    """A member of the policy document, dotted, and what would have to change for another decision."""

    member: str
    change: str


_GPU_LISTED = "use a listed GPU, or list this one"
_UPDATE = "update the machine, or accept its state in the next version"

_BY_REASON: Mapping[str, Deciding] = MappingProxyType(
    {
        "POLICY_SIGNATURES_INSUFFICIENT": Deciding("operators", "have enough of the operators who count sign it"),
        "POLICY_OF_ANOTHER_MESH": Deciding("trust_domain", "take the policy of the mesh that the compose is for"),
        "TEE_TYPE_NOT_ALLOWED": Deciding("vendor_roots", "list the technology's vendor root and its rules"),
        "VENDOR_ROOT_NOT_TRUSTED": Deciding("vendor_roots", "use a machine under a listed root, or list this root"),
        "TCB_STATUS_NOT_ALLOWED": Deciding("tcb.statuses", _UPDATE),
        "TCB_TOO_OLD": Deciding("tcb.grace_seconds", _UPDATE),
        "TCB_ADVISORY_REFUSED": Deciding("tcb.refused_advisories", _UPDATE),
        "TCB_EVALUATION_TOO_LOW": Deciding("tcb.minimum_evaluation_number", "have the prover fetch newer collateral"),
        "COLLATERAL_TOO_OLD": Deciding("tcb.maximum_collateral_age_seconds", "have the prover fetch newer collateral"),
        "TD_ATTRIBUTES_NOT_ALLOWED": Deciding("td_attributes", "start the guest with listed attributes, or list these"),
        "CHALLENGE_TOO_OLD": Deciding("evidence_max_age_seconds", "get fresh evidence, or judge at its own time"),
        "DEVICE_REVOKED": Deciding("devices.revoked", "use another machine, or take this one off the list"),
        "DEVICE_NOT_LISTED": Deciding("devices.allowed", "use a listed machine, or list this one"),
        "CPU_FAMILY_REVOKED": Deciding("devices.revoked_families", "use another machine, or take the family off"),
        "CPU_FAMILY_NOT_LISTED": Deciding("devices.allowed_families", "use a listed family, or list this one"),
        "GPU_RULE_MISSING": Deciding("gpu", "say in the next version whose word on GPUs counts"),
        "GPU_TOKEN_ISSUER_NOT_TRUSTED": Deciding("gpu.issuers", "get tokens of a listed issuer, or list this one"),
        "GPU_TOKEN_KEY_NOT_TRUSTED": Deciding("gpu.issuers", "list the authority that certifies the issuer's keys"),
        "GPU_PINNED_KEY_UNUSABLE": Deciding("gpu.issuers", "list keys that can sign tokens"),
        "GPU_TOKEN_TOO_OLD": Deciding("gpu.maximum_token_age_seconds", "get fresh evidence, or accept older tokens"),
        "GPU_DEVICE_REVOKED": Deciding("gpu.revoked_ueids", "use another device, or take this one off the list"),
        "GPU_DEVICE_NOT_ALLOWED": Deciding("gpu.allowed_ueids", _GPU_LISTED),
        "GPU_MODEL_NOT_ALLOWED": Deciding("gpu.allowed_models", _GPU_LISTED),
        "GPU_REPORTS_REQUIRED": Deciding("gpu.reports_required", "have the guest collect each GPU's own report"),
        "GPU_CHAIN_NOT_TRUSTED": Deciding("vendor_roots", "use GPUs under a listed nvidia-gpu root, or list this root"),
        "SNP_PRODUCT_NOT_ALLOWED": Deciding("snp.minimum_tcb", "state a least patch level for the product"),
        "SNP_TCB_TOO_LOW": Deciding("snp.minimum_tcb", _UPDATE),
        "SNP_CRL_TOO_OLD": Deciding("snp.maximum_crl_age_seconds", "have the prover fetch a newer CRL"),
        "SNP_SMT_NOT_ALLOWED": Deciding("snp.allow_smt", "start the guest without SMT, or allow it"),
        "SNP_SINGLE_SOCKET_REQUIRED": Deciding("snp.require_single_socket", "start the guest for a single socket"),
        "SNP_ABI_TOO_OLD": Deciding("snp.minimum_abi_major", "start the guest with a higher least ABI"),
        "SNP_PLATFORM_NOT_ALLOWED": Deciding("snp.required_platform", "use a host that runs as required"),
        "SNP_ID_KEY_NOT_ALLOWED": Deciding("snp.id_keys", "sign the ID block with a listed key, or list this one"),
        "SNP_AUTHOR_KEY_NOT_ALLOWED": Deciding("snp.author_keys", "use a listed author key, or list this one"),
        "SNP_GUEST_SVN_TOO_LOW": Deciding("snp.minimum_guest_svn", "launch a newer guest"),
    }
)
DECIDED_REASONS = frozenset(_BY_REASON) | {
    "POLICY_NOT_VALID_NOW",
    "MEASUREMENT_NOT_ALLOWED",
    "GPU_EVIDENCE_MISSING",
    "MODEL_NOT_ALLOWED",
}
"""The reasons for which a member of the document is named. Revocations are documents of their own."""

_LIST_MEASUREMENT = "deploy what is listed, or list this measurement in the next version"


def deciding_validity(policy: Policy, now: float) -> Deciding:
    """Name which end of a policy's validity excludes this moment."""
    if now < policy.not_before:
        return Deciding("not_before", "wait until then")
    return Deciding("not_after", "publish the next version")


def deciding_refusal(
    reason: str, policy: Policy, role: str, tee_type: str, claims: Mapping[str, Any]
) -> Deciding | None:
    """Name the member by which the policy refuses evidence of this technology and these claims; None where no policy
    would accept it.
    """
    match reason:
        case "MEASUREMENT_NOT_ALLOWED":
            if role not in policy.roles:
                return Deciding("roles", f"grant something to role {role}")
            return Deciding(f"roles.{role}.{_measurements(tee_type)}", _LIST_MEASUREMENT)
        case "GPU_EVIDENCE_MISSING":
            if role not in policy.roles:
                return Deciding("roles", f"grant something to role {role}")
            return Deciding(f"roles.{role}.gpu_required", "have the guest collect GPU evidence")
        case "MODEL_NOT_ALLOWED":
            model = _first_model_not_allowed(policy, claims)
            return None if model is None else Deciding(_quoted("models", model), "serve listed weights, or list these")
        case "TEE_TYPE_NOT_ALLOWED" if tee_type == SNP:
            return Deciding("snp", "state rules for SEV-SNP, and list its vendor root")
    return _BY_REASON.get(reason)


def deciding_measurement(policy: Policy, role: str, measurement: Mapping[str, Any]) -> str:
    """Name the entry of the document that allows a measurement; the policy MUST allow it."""
    grant = jcs.loads_object(policy.document)["roles"][role]
    for name in ("measurements", "snp_measurements"):
        if measurement in grant.get(name, ()):
            return f"roles.{role}.{name}[{grant[name].index(measurement)}]"
    raise LookupError(f"role {role} has no such measurement")


def of_role(deciding: Deciding, role: str) -> Deciding:
    """Return the same rule about patch levels as the role states it for itself."""
    return Deciding(f"roles.{role}.{deciding.member}", deciding.change)


def deciding_revocation(identifier: bytes) -> Deciding:
    """Name a revocation: it is no member, and the member that takes it back is `lifted_revocations`."""
    return Deciding(
        _quoted("revocations", identifier.hex()), "use what is not revoked, or list the id in lifted_revocations"
    )


def is_about_patch_levels(deciding: Deciding) -> bool:
    """Say whether the rule is one that a role may state a second time."""
    return deciding.member.startswith("tcb.")


def _measurements(tee_type: str) -> str:
    return "measurements" if tee_type == TDX else "snp_measurements"


def _first_model_not_allowed(policy: Policy, claims: Mapping[str, Any]) -> str | None:
    for model in claims.get("models", ()):
        if model["weights_sha256"] not in policy.models.get(model["id"], frozenset()):
            identifier: str = model["id"]
            return identifier
    return None


def _quoted(member: str, name: str) -> str:
    return f'{member}."{name}"'
