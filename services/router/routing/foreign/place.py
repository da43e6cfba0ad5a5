"""Responsible for where a foreign provider is, and as whom this router speaks to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.client.http import Origin, parse_origin
from libs.policy.foreign import ForeignProvider
from services.router.routing.foreign.access import Credentials


@dataclass(frozen=True, slots=True)
class Place:
    """A provider of policy's, and what the configuration adds."""

    provider: ForeignProvider
    origin: Origin
    credentials: Credentials = field(repr=False)

    @classmethod
    def of(cls, provider: ForeignProvider, credentials: Credentials) -> Place:
        return cls(provider, parse_origin(provider.origin), credentials)

    @property
    def name(self) -> str:
        return self.provider.name

    @property
    def api_key(self) -> str | None:
        return self.credentials.api_key

    def known_there(self, model: str) -> str:
        """Return what the provider calls a model of this mesh that policy lists for it."""
        return self.provider.models[model]
