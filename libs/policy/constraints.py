"""It is responsible for what a policy demands of the nodes that serve one tenant, beyond what it demands of every node.

A tenant without an entry of its own is under the entry "default"; without that, verified nodes are all that is asked.
An entry stands alone: nothing of the default is added to it. An absent list limits nothing, an empty one allows
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from libs.policy.members import Members
from libs.policy.tenant_record import TENANT_ID_BYTES
from libs.policy.vocabulary import REGION

_DEFAULT = "default"
_ENTRY = re.compile(rf"{_DEFAULT}|[0-9a-f]{{{2 * TENANT_ID_BYTES}}}")
_CPU_TEE = re.compile("tdx|sev-snp")
_MODEL = re.compile("[!-~]{1,128}")
_WEIGHTS_BYTES = 32


@dataclass(frozen=True, slots=True)
class TenantConstraints:
    """What a node must be to serve a tenant. The default of each field demands the least, but for `verified_only`."""

    verified_only: bool = True
    """Whether a provider that nobody can verify is refused, also when the request itself would take one."""
    regions: frozenset[str] | None = None
    """Of which the measured configuration of the node claims one; None: any, or none claimed."""
    tee_types: frozenset[str] | None = None
    """In which the node's CPU evidence is made; None: any that the policy accepts."""
    gpu_required: bool = False
    """Whether the node must have proven GPUs."""
    models: Mapping[str, frozenset[str]] | None = None
    """Model id to the weights that may serve it; None: what the policy lists."""
    max_evidence_age_seconds: int | None = None
    """How long ago the challenge was issued that the node's evidence answers; None: as the policy says of everyone."""

    def allows_model(self, model: str) -> bool:
        """Say whether the tenant may use a model that the policy lists."""
        return self.models is None or model in self.models

    def allows_weights(self, model: str, weights: str | None) -> bool:
        """Say whether these of the policy's weights may serve the model to the tenant."""
        return self.models is None or weights in self.models.get(model, ())


@dataclass(frozen=True, slots=True)
class Constraints:
    """What holds for each tenant."""

    default: TenantConstraints = TenantConstraints()
    by_tenant: Mapping[str, TenantConstraints] = field(default_factory=lambda: MappingProxyType({}))
    """By random id, 32 hexadecimal digits."""

    def of(self, tenant_id: str) -> TenantConstraints:
        return self.by_tenant.get(tenant_id, self.default)


VERIFIED_ONLY = Constraints()
"""What a policy says that has no such member."""


def read_constraints(
    members: Members, models: Mapping[str, frozenset[str]], maximum_evidence_age_seconds: int
) -> Constraints:
    """Read the member "constraints". Raises the reader's refusal, also for what the policy allows nobody anyway."""
    entries = {
        name: _read(members.object(name), models, maximum_evidence_age_seconds) for name in members.names(_ENTRY)
    }
    default = entries.pop(_DEFAULT, VERIFIED_ONLY.default)
    return Constraints(default, MappingProxyType(entries))


def _read(entry: Members, models: Mapping[str, frozenset[str]], maximum_evidence_age_seconds: int) -> TenantConstraints:
    verified_only = entry.flag("verified_only") if entry.has("verified_only") else True
    regions = _texts(entry, "regions", REGION)
    hardware = entry.object("hardware") if entry.has("hardware") else None
    tee_types, gpu_required = None, False
    if hardware is not None:
        tee_types = _texts(hardware, "tee_types", _CPU_TEE)
        gpu_required = hardware.flag("gpu_required") if hardware.has("gpu_required") else False
        hardware.end()
    weights = _read_models(entry.object("models"), models) if entry.has("models") else None
    age = None
    if entry.has("max_evidence_age_seconds"):
        age = entry.integer("max_evidence_age_seconds", 1, maximum_evidence_age_seconds)
    entry.end()
    return TenantConstraints(verified_only, regions, tee_types, gpu_required, weights, age)


def _texts(entry: Members, name: str, pattern: re.Pattern[str]) -> frozenset[str] | None:
    return frozenset(entry.texts(name, pattern, may_be_empty=True)) if entry.has(name) else None


def _read_models(members: Members, allowed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
    read: dict[str, frozenset[str]] = {}
    for model in members.names(_MODEL):
        if model not in allowed:
            raise members.refuse(model, "is no model that the policy lists")
        read[model] = frozenset(members.hexadecimals(model, _WEIGHTS_BYTES, may_be_empty=True))
        if unknown := read[model] - allowed[model]:
            raise members.refuse(model, f"names the weights {min(unknown)}, which the policy does not list for it")
    return MappingProxyType(read)
