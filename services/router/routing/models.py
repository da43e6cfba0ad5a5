"""It is responsible for the list of models: what each tenant may ask for, by whichever way it asks."""

from __future__ import annotations

from dataclasses import dataclass

from libs.aci.endpoints import Endpoint
from services.router.admission.tenants import Tenant
from services.router.routing.foreign.providers import ForeignProviders
from services.router.routing.upstreams import Upstreams


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model, and where it is served."""

    name: str
    endpoints: frozenset[Endpoint]
    weights_sha256: bytes
    """Empty where no node of this mesh serves it, but a provider alone."""


class Models:
    """What nodes and providers that are verified serve now."""

    def __init__(self, upstreams: Upstreams, foreign: ForeignProviders) -> None:
        self._upstreams = upstreams
        self._foreign = foreign

    def of(self, tenant: Tenant) -> list[ServedModel]:
        """Return those that this tenant's key may ask for, by name."""
        ours, theirs = self._upstreams.endpoints(tenant.tenant_id), self._foreign.models(tenant.tenant_id)
        weights = self._upstreams.weights(tenant.tenant_id)
        nowhere: frozenset[Endpoint] = frozenset()
        return [
            ServedModel(
                name,
                ours.get(name, nowhere) | theirs.get(name, nowhere),
                bytes.fromhex(weights.get(name, "")),
            )
            for name in sorted({*ours, *theirs})
            if tenant.key.allows_model(name)
        ]
