"""It is responsible for an operator's calls to the registry, whichever of its instances answers. What it answers is its
word, and nothing more.

Both changes that operators make there are harmless to ask for twice: a drain is or is not.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc.aio
from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc

from libs.errors import Code, MeshError
from libs.policy.vocabulary import INSTANCE
from libs.rpc.errors import remote_errors
from services.cli.mesh.instances import Instances
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import ServiceAccess, access_at
from services.cli.terminal.inputs import InputUnreadable

_PAGE = 500
_MAX_PAGES = 200
_NODE_ID = re.compile(rf"spiffe://[a-z0-9.-]{{1,200}}/node/{INSTANCE.pattern}")

T = TypeVar("T")


class RegistrySilent(MeshError):
    """An instance of the registry did not answer in its share of the time."""

    code = Code.DEADLINE_EXCEEDED
    reason = "REGISTRY_SILENT"


class ListingEndless(MeshError):
    """The registry goes on giving pages: more than any mesh has."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "LISTING_ENDLESS"


class ProviderUnknown(MeshError):
    """The registry lists no node of that name."""

    code = Code.NOT_FOUND
    reason = "PROVIDER_UNKNOWN"


class RegistryClient:
    """Calls, each with a deadline. Every method raises what the registry refuses with."""

    def __init__(self, stub: registry_pb2_grpc.ProviderRegistryServiceStub, timeout_seconds: float) -> None:
        self._stub = stub
        self._timeout = timeout_seconds

    async def providers(
        self, model: str = "", state: pb.ProviderState.ValueType = pb.PROVIDER_STATE_UNSPECIFIED, region: str = ""
    ) -> list[pb.Provider]:
        """Everything that is listed. Raises `ListingEndless`."""

        async def page(token: str) -> tuple[list[pb.Provider], str]:
            request = pb.ListProvidersRequest(
                model=model, state=state, region=region, page_size=_PAGE, page_token=token
            )
            with remote_errors():
                answer = await self._stub.ListProviders(request, timeout=self._timeout)
            return list(answer.providers), answer.next_page_token

        return await _all(page)

    async def provider(self, spiffe_id: str) -> pb.Provider:
        """Raises `ProviderUnknown`."""
        found = next((each for each in await self.providers() if each.spiffe_id == spiffe_id), None)
        if found is None:
            raise ProviderUnknown(f"the registry lists no {spiffe_id}: its lease ended, or it never had one")
        return found

    async def sessions(self, spiffe_id: str = "", model: str = "", current: bool = False) -> list[pb.SessionSummary]:
        """Everything that is kept, the newest first. Raises `ListingEndless`."""

        async def page(token: str) -> tuple[list[pb.SessionSummary], str]:
            request = pb.ListSessionsRequest(
                spiffe_id=spiffe_id, model=model, current=current, page_size=_PAGE, page_token=token
            )
            with remote_errors():
                answer = await self._stub.ListSessions(request, timeout=self._timeout)
            return list(answer.sessions), answer.next_page_token

        return await _all(page)

    async def session(self, session_id: bytes) -> bytes:
        """A document that claims to be of that id."""
        with remote_errors():
            answer = await self._stub.GetSession(pb.GetSessionRequest(session_id=session_id), timeout=self._timeout)
        return answer.document

    async def drain(self, spiffe_id: str, reason: str) -> None:
        request = pb.DrainRequest(spiffe_id=spiffe_id, reason=reason, request_id=uuid.uuid4().hex)
        with remote_errors():
            await self._stub.Drain(request, timeout=self._timeout)

    async def resume(self, spiffe_id: str) -> None:
        request = pb.ResumeRequest(spiffe_id=spiffe_id, request_id=uuid.uuid4().hex)
        with remote_errors():
            await self._stub.Resume(request, timeout=self._timeout)


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """The instances, at least one, the preferred one first."""

    instances: tuple[ServiceAccess, ...]

    @property
    def operator(self) -> ServiceAccess:
        """As whom the operator calls, and whom they believe: the same for all instances."""
        return self.instances[0]

    @property
    def trust_domain(self) -> str:
        return self.operator.trust_domain

    @property
    def ca_spki(self) -> bytes:
        return self.operator.ca_spki

    async def ask(self, ask: Callable[[RegistryClient], Awaitable[T]], timeout_seconds: float) -> T:
        """Return what `ask` gets from one instance.

        All instances together take `timeout_seconds` at most. Raises what the registry refuses with, and
        `RegistrySilent`.
        """

        async def over(channel: grpc.aio.Channel, seconds: float) -> T:
            return await ask(RegistryClient(registry_pb2_grpc.ProviderRegistryServiceStub(channel), seconds))

        return await Instances("the registry", RegistrySilent, self.instances).ask(over, timeout_seconds)


def read_registry_access(mesh: Path) -> RegistryAccess:
    """Read mesh.json. Raises `InputUnreadable`."""
    described = MeshReader(mesh)
    domain = described.text("trust_domain")
    targets = described.texts("registry_grpc")
    return RegistryAccess(tuple(access_at(described, "registry", target, domain) for target in targets))


def spiffe_id_of(given: str, trust_domain: str) -> str:
    """Return a node's SPIFFE ID, given whole or by its instance's name. Raises `InputUnreadable`."""
    whole = given if given.startswith("spiffe://") else f"spiffe://{trust_domain}/node/{given}"
    if not _NODE_ID.fullmatch(whole) or not whole.startswith(f"spiffe://{trust_domain}/"):
        raise InputUnreadable(f"{given!r} is neither a node's name nor the SPIFFE ID of a node of {trust_domain}")
    return whole


async def _all(page: Callable[[str], Awaitable[tuple[list[T], str]]]) -> list[T]:
    found: list[T] = []
    token = ""
    for _ in range(_MAX_PAGES):
        items, token = await page(token)
        found.extend(items)
        if not token:
            return found
    raise ListingEndless(f"more than {_MAX_PAGES} pages: this is not a registry of this mesh")
