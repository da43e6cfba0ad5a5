"""It is responsible for the mesh policy: one JSON document in, a frozen value that answers questions out.

Reading is total: every member is known, typed, bounded and free of repeats, or the policy is refused with the name of
the offending member. A policy that was read says nothing about who signed it; see `libs.policy.signatures`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.constraints import VERIFIED_ONLY, Constraints, read_constraints
from libs.policy.foreign import ForeignProvider, foreign_rules, read_foreign_providers
from libs.policy.hardware import SNP, TDX, Hardware, read_hardware, read_tcb
from libs.policy.measurement import read_measurement
from libs.policy.members import Members
from libs.policy.releases import KeyRelease, read_key_releases
from libs.policy.revocation import RevocationSet
from libs.policy.revoked import NOTHING_REVOKED, Revoked, revoked_by
from libs.policy.snp import read_snp_measurement
from libs.policy.vocabulary import KEY_BYTES, ROLE, TRUST_DOMAIN
from libs.tee.measurement import Measurement, MeasurementSet
from libs.tee.role import RoleRules
from libs.tee.rules import AllOf
from libs.tee.snp.platform import SnpRules
from libs.tee.snp.rules import SnpMeasurement
from libs.tee.tcb import TcbRule
from libs.tee.tdx_platform import TdxRules

MAX_POLICY_BYTES = 1024 * 1024
"""No larger policy is read: it has to fit the mesh's request bodies."""

NO_PREVIOUS = bytes(32)
"""What the first version says about its predecessor."""

_MAX_AGE_SECONDS = 7 * 86400
_MAX_VERSION = 2**32 - 1
_MAX_RETENTION_MONTHS = 1200
_DEBUG_ATTRIBUTE = 0x01

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class PolicyMalformed(MeshError):
    """The document is not a policy that this version reads."""

    code = Code.INVALID_ARGUMENT
    reason = "POLICY_MALFORMED"


@dataclass(frozen=True, slots=True)
class RoleGrant:
    """What a role's evidence must show."""

    measurements: frozenset[Measurement]
    gpu_required: bool
    snp_measurements: frozenset[SnpMeasurement] = frozenset()
    tcb: TcbRule | None = None
    """Besides the policy's own rule about patch levels, where the role has one: it can only ask for more."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that was read. Valid as a document; not yet known to be signed, next, or in force."""

    document: bytes
    """Canonical JSON: what is hashed and signed."""
    version: int
    previous: bytes
    """Digest of the version before; `NO_PREVIOUS` in version 1."""
    not_before: int
    """Unix seconds, included."""
    not_after: int
    """Unix seconds, excluded."""
    trust_domain: str
    operator_keys: tuple[bytes, ...]
    """Ed25519 public keys, distinct."""
    operator_threshold: int
    """How many distinct operators must sign."""
    hardware: Hardware
    roles: Mapping[str, RoleGrant]
    models: Mapping[str, frozenset[str]]
    """Model id to the SHA-256 digests of weights that may serve it, hexadecimal."""
    key_releases: tuple[KeyRelease, ...]
    tenant_admin_key: bytes
    """Ed25519 public key under which tenant records count."""
    challenge_max_age_seconds: int
    evidence_max_age_seconds: int
    constraints: Constraints = VERIFIED_ONLY
    """What nodes must be to serve a tenant."""
    foreign_providers: tuple[ForeignProvider, ...] = ()
    """Services outside the mesh that routers may send prompts to; names are distinct."""
    retention_months: int | None = None
    """How many whole months tenants' entries are kept after their own; None: until somebody orders otherwise."""
    lifted_revocations: frozenset[bytes] = frozenset()
    """Ids of revocations that no longer count under this version."""
    revoked: Revoked = NOTHING_REVOKED
    """What single operators have withdrawn since. No part of the document: see `under`."""
    digest: bytes = field(init=False, repr=False)
    """SHA-256 of the canonical document: the policy's identity."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.document).digest())

    @property
    def development_roots(self) -> tuple[str, ...]:
        """Names of the roots under which nothing is proven. Not empty: this mesh is for development."""
        return tuple(root.name for root in self.hardware.vendor_roots if root.development)

    def under(self, revocations: RevocationSet) -> Policy:
        """Return the same version as it counts while these revocations, and no others, are known."""
        return replace(self, revoked=revoked_by(revocations.active(self.lifted_revocations)))

    def rules(self, role: str) -> RoleRules:
        """Return what evidence for a role must satisfy. A role that the policy does not grant gets rules that
        allow nothing.
        """
        grant = self.roles.get(role, RoleGrant(measurements=frozenset(), gpu_required=True))
        hardware, revoked = self.hardware, self.revoked
        return RoleRules(
            role=role,
            tdx=TdxRules(
                vendor_roots=hardware.roots(TDX),
                tcb=hardware.tcb if grant.tcb is None else AllOf((hardware.tcb, grant.tcb)),
                td_attributes=hardware.td_attributes,
                measurements=MeasurementSet(grant.measurements, revoked.compose_hashes),
            )
            if hardware.roots(TDX)
            else None,
            snp=None
            if hardware.snp is None
            else SnpRules(
                vendor_roots=hardware.roots(SNP),
                rule=hardware.snp,
                measurements=MeasurementSet(grant.snp_measurements, revoked.compose_hashes),
            ),
            devices=hardware.devices.without(revoked.devices, revoked.cpu_families).rule(),
            gpu=None if hardware.gpu is None else hardware.gpu.without(revoked.devices),
            gpu_required=grant.gpu_required,
            models=self.models if role == "node" else MappingProxyType({}),
        )

    def foreign_rules(self, provider: ForeignProvider) -> RoleRules:
        """Return what the evidence of a foreign provider must satisfy."""
        return foreign_rules(provider, self.hardware, self.revoked)

    def key_release(self, name: str) -> KeyRelease | None:
        """Return the rule about the key of this exact name; None where there is none, so nobody may use it."""
        return next((release for release in self.key_releases if release.covers(name)), None)


def parse(data: bytes) -> Policy:
    """Read a policy from JSON, canonical or not. Raises `PolicyMalformed`."""
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyMalformed(f"the document is larger than {MAX_POLICY_BYTES} bytes")
    try:
        value = jcs.loads_object(data)
    except jcs.JsonMalformed as error:
        raise PolicyMalformed(f"the document is {error}") from error
    return read(value)


def read(value: Any) -> Policy:
    """Read a policy from a JSON value. Raises `PolicyMalformed`."""
    members = Members(value, "", PolicyMalformed)
    members.integer("v", 1, 1)
    version = members.integer("version", 1, _MAX_VERSION)
    previous = members.octets("previous", KEY_BYTES)
    if (version == 1) != (previous == NO_PREVIOUS):
        raise members.refuse("previous", "must be 64 zeros in version 1 and in no other")
    not_before = members.integer("not_before", 0)
    not_after = members.integer("not_after", 0)
    if not_after <= not_before:
        raise members.refuse("not_after", "must be later than not_before")
    operators = members.object("operators")
    operator_keys = tuple(bytes.fromhex(key) for key in operators.hexadecimals("keys", KEY_BYTES))
    operator_threshold = operators.integer("threshold", 1, len(operator_keys))
    operators.end()
    models = _read_models(members.object("models"))
    evidence_max_age_seconds = members.integer("evidence_max_age_seconds", 1, _MAX_AGE_SECONDS)
    policy = Policy(
        document=_canonical(value),
        version=version,
        previous=previous,
        not_before=not_before,
        not_after=not_after,
        trust_domain=members.text("trust_domain", TRUST_DOMAIN),
        operator_keys=operator_keys,
        operator_threshold=operator_threshold,
        hardware=read_hardware(members),
        roles=_read_roles(members),
        models=models,
        key_releases=read_key_releases(members),
        tenant_admin_key=members.octets("tenant_admin_key", KEY_BYTES),
        challenge_max_age_seconds=members.integer("challenge_max_age_seconds", 1, _MAX_AGE_SECONDS),
        evidence_max_age_seconds=evidence_max_age_seconds,
        constraints=read_constraints(members.object("constraints"), models, evidence_max_age_seconds)
        if members.has("constraints")
        else VERIFIED_ONLY,
        foreign_providers=read_foreign_providers(members),
        retention_months=members.integer("retention_months", 1, _MAX_RETENTION_MONTHS)
        if members.has("retention_months")
        else None,
        lifted_revocations=_read_lifted(members),
    )
    for revocation in members.objects("revocations"):
        # One that nobody acts on must not look effective: revocations are documents of their own.
        raise revocation.refuse("", "is a revocation, which no policy document holds: revoke it by itself")
    members.end()
    return policy


def _canonical(value: Any) -> bytes:
    try:
        return jcs.dumps(value)
    except jcs.JsonMalformed as error:
        raise PolicyMalformed(f"the document has {error}") from error


def _read_lifted(members: Members) -> frozenset[bytes]:
    if not members.has("lifted_revocations"):
        return frozenset()
    return frozenset(map(bytes.fromhex, members.hexadecimals("lifted_revocations", KEY_BYTES, may_be_empty=True)))


def _read_roles(members: Members) -> Mapping[str, RoleGrant]:
    roles = members.object("roles")
    grants = {}
    for role in roles.names(ROLE):
        grant = roles.object(role)
        # An empty list is an operator's way to take every measurement off a role: it allows nothing.
        measurements = grant.distinct([read_measurement(m) for m in grant.objects("measurements")], "measurements")
        tcb = read_tcb(grant.object("tcb")) if grant.has("tcb") else None
        snp_entries = grant.objects("snp_measurements") if grant.has("snp_measurements") else ()
        snp = [read_snp_measurement(entry) for entry in snp_entries]
        grants[role] = RoleGrant(
            frozenset(measurements),
            grant.flag("gpu_required"),
            frozenset(grant.distinct(snp, "snp_measurements")),
            tcb,
        )
        grant.end()
    if not grants:
        raise members.refuse("roles", "must not be empty")
    return MappingProxyType(grants)


def _read_models(members: Members) -> Mapping[str, frozenset[str]]:
    return MappingProxyType({model: frozenset(members.hexadecimals(model, 32)) for model in members.names(_MODEL)})
