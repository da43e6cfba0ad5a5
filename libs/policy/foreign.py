"""It is responsible for what a policy says about foreign providers: who outside the mesh may get a prompt, and by what
proof.

A policy without this member lists nobody, so routers speak to nobody. Every member is one that its kind acts on; one
that another kind has is refused like a misspelt one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from types import MappingProxyType

from libs.aci.claims import CLAIM_NAMES
from libs.policy.hardware import TDX, Hardware
from libs.policy.measurement import read_measurement
from libs.policy.members import Members
from libs.policy.revoked import Revoked
from libs.tee.measurement import Measurement, MeasurementSet
from libs.tee.role import RoleRules
from libs.tee.tdx_platform import TdxRules


class ForeignKind(StrEnum):
    """Which adapter speaks to a provider, and so what can be verified of it."""

    ACI = "aci"
    VLLM_PROXY = "dstack-vllm-proxy"
    OPENAI = "openai"


_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_KIND = re.compile("|".join(ForeignKind))
_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ORIGIN = re.compile(rf"https://(?:{_LABEL}(?:\.{_LABEL}){{0,7}}|\[[0-9a-f:.]{{2,45}}\])(?::(?:{_PORT}))?")
"""What every router can connect to: a name that the resolver would choke on would end them all at once."""
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_SUBJECT = re.compile(r"[!-~]{1,256}")
_TENANT = re.compile(r"[0-9a-f]{32}")
_CLAIM = re.compile("|".join(CLAIM_NAMES))


@dataclass(frozen=True, slots=True)
class ForeignProvider:
    """One provider, and what it must prove before it gets a prompt."""

    name: str
    kind: ForeignKind
    origin: str
    """https://host or https://host:port, lower case."""
    models: Mapping[str, str]
    """Model id as clients of this mesh write it, to the id that the provider knows it by."""
    measurements: frozenset[Measurement] = frozenset()
    """What its evidence must show, one of them. Empty: nothing that it shows is enough."""
    subject: str | None = None
    """What its keyset must call itself. None: the name is a label and not judged."""
    session_claims: frozenset[str] = frozenset()
    """What its own sessions must assert besides a TEE that hardware proves."""
    best_effort: bool = False
    """Prompts may go there although not everything is verified."""
    tenants: frozenset[str] = frozenset()
    """With `best_effort`: whose prompts, by random tenant id. Empty: nobody's."""


def read_foreign_providers(members: Members) -> tuple[ForeignProvider, ...]:
    """Take the policy's optional member `foreign_providers`."""
    if not members.has("foreign_providers"):
        return ()
    providers = [_read_provider(entry) for entry in members.objects("foreign_providers")]
    members.distinct([provider.name for provider in providers], "foreign_providers")
    return tuple(providers)


def foreign_rules(provider: ForeignProvider, hardware: Hardware, revoked: Revoked) -> RoleRules:
    """Return what a provider's evidence must satisfy: its own measurements, on machines as policy wants them for all.

    Lists of machines hold for foreign machines too: a policy that lists any must list these.
    """
    roots = hardware.roots(TDX)
    return RoleRules(
        role=f"of foreign provider {provider.name}",
        tdx=TdxRules(
            vendor_roots=roots,
            tcb=hardware.tcb,
            td_attributes=hardware.td_attributes,
            measurements=MeasurementSet(provider.measurements, revoked.compose_hashes),
        )
        if roots
        else None,
        snp=None,
        devices=hardware.devices.without(revoked.devices, revoked.cpu_families).rule(),
        gpu=None,
        gpu_required=False,
        models=MappingProxyType({}),
    )


def _read_provider(entry: Members) -> ForeignProvider:
    name = entry.text("name", _NAME)
    kind = ForeignKind(entry.text("kind", _KIND))
    origin = _read_origin(entry)
    models = _read_models(entry)
    attested = kind is not ForeignKind.OPENAI
    has_sessions = kind is ForeignKind.ACI
    best_effort = kind is not ForeignKind.ACI and _read_best_effort(entry, kind)
    provider = ForeignProvider(
        name=name,
        kind=kind,
        origin=origin,
        models=models,
        measurements=_read_measurements(entry) if attested else frozenset(),
        subject=entry.text("subject", _SUBJECT) if has_sessions and entry.has("subject") else None,
        session_claims=frozenset(entry.texts("session_claims", _CLAIM, may_be_empty=True))
        if has_sessions
        else frozenset(),
        best_effort=best_effort,
        tenants=frozenset(entry.texts("tenants", _TENANT, may_be_empty=True)) if best_effort else frozenset(),
    )
    entry.end()
    return provider


def _read_origin(entry: Members) -> str:
    origin = entry.text("origin", _ORIGIN)
    host, bracket, _ = origin.removeprefix("https://[").partition("]")
    try:
        if bracket:
            IPv6Address(host)
    except ValueError as error:
        raise entry.refuse("origin", "has no IPv6 address between its brackets") from error
    return origin


def _read_models(entry: Members) -> Mapping[str, str]:
    models = entry.object("models")
    renamed = {name: models.text(name, _MODEL) for name in models.names(_MODEL)}
    if not renamed:
        raise entry.refuse("models", "must not be empty")
    return MappingProxyType(renamed)


def _read_measurements(entry: Members) -> frozenset[Measurement]:
    measurements = [read_measurement(measurement) for measurement in entry.objects("measurements")]
    return frozenset(entry.distinct(measurements, "measurements"))


def _read_best_effort(entry: Members, kind: ForeignKind) -> bool:
    """A provider that is never verified is only listed by somebody who writes that down."""
    best_effort = entry.flag("best_effort")
    if kind is ForeignKind.OPENAI and not best_effort:
        raise entry.refuse("best_effort", "must be true: nothing of this kind is ever verified")
    return best_effort
