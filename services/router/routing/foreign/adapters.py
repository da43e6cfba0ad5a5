"""Responsible for which adapter a provider's kind gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import assert_never

from libs.identity.collateral import CollateralSource
from libs.policy.foreign import ForeignKind, ForeignProvider
from services.router.reading import Reading
from services.router.routing.foreign.access import Credentials
from services.router.routing.foreign.aci import AciAdapter
from services.router.routing.foreign.adapter import Adapter
from services.router.routing.foreign.openai import OpenAiAdapter
from services.router.routing.foreign.vllm_proxy import VllmProxyAdapter

_NONE = Credentials()


class Adapters:
    """Makes adapters. Each verification asks a new source of collateral: one that holds some holds one machine's."""

    def __init__(
        self, credentials: Mapping[str, Credentials], collateral: Callable[[], CollateralSource], reading: Reading
    ) -> None:
        self._credentials = credentials
        self._collateral = collateral
        self._reading = reading

    def of(self, provider: ForeignProvider) -> Adapter:
        credentials = self._credentials.get(provider.name, _NONE)
        match provider.kind:
            case ForeignKind.ACI:
                return AciAdapter(provider, credentials, self._collateral)
            case ForeignKind.VLLM_PROXY:
                return VllmProxyAdapter(provider, credentials, self._collateral, self._reading)
            case ForeignKind.OPENAI:
                return OpenAiAdapter(provider, credentials)
        assert_never(provider.kind)
