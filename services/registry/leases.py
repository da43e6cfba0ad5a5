"""It is responsible for node leases: opened on evidence that this registry appraised, renewed by heartbeat."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from libs.errors import Code, MeshError
from libs.identity.lease import Lease
from services.registry.admissions import Admissions
from services.registry.claims import claimed_engine, claimed_models, claimed_region
from services.registry.providers import Load, Provider, ProviderRecordMalformed, decode
from services.registry.sessions import Sessions, draft_session
from services.registry.store import Bucket, StoreConflict
from services.registry.view import lease_key

_ENDPOINT = re.compile(r"([a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\]):([1-9][0-9]{0,4})")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_PORT = 65535
_ATTEMPTS = 3

log = structlog.get_logger()


class EndpointMalformed(MeshError):
    """Not a host and port."""

    code = Code.INVALID_ARGUMENT
    reason = "ENDPOINT_MALFORMED"


class ModelNotClaimed(MeshError):
    """The models offered are not those that the evidence speaks for."""

    code = Code.PERMISSION_DENIED
    reason = "MODEL_NOT_ALLOWED"


class LeaseUnknown(MeshError):
    """This key has no lease: register."""

    code = Code.NOT_FOUND
    reason = "LEASE_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node says of itself when it registers."""

    endpoint: str
    models: tuple[tuple[str, str], ...]
    load: Load


class NodeLeases:
    """Opens, renews and ends leases in the store."""

    def __init__(
        self,
        bucket: Bucket,
        sessions: Sessions,
        kept: Container[str],
        admissions: Admissions,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
        known: Callable[[str], tuple[Provider, int] | None] = lambda _: None,
    ) -> None:
        """`kept` knows most of the ids of sessions that are kept, and no other. `known` returns what was last seen
        stored under a SPIFFE ID, and its revision; it need not be the newest.
        """
        self._bucket = bucket
        self._sessions = sessions
        self._kept = kept
        self._admissions = admissions
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._known = known

    async def register(self, node: Lease, offer: Offer) -> Provider:
        """List a node, once its admission is on record.

        Raises `EndpointMalformed`, `ModelNotClaimed`, `ClaimMalformed`, `OutboxFull` and the store's refusals.
        """
        endpoint = _ENDPOINT.fullmatch(offer.endpoint)
        if endpoint is None or int(endpoint[2]) > _MAX_PORT or not _is_host(endpoint[1]):
            raise EndpointMalformed("the endpoint must be host:port")
        models = claimed_models(node)
        if tuple(sorted(offer.models)) != models:
            raise ModelNotClaimed("the models offered must be those in the evidence claims")
        engine, region = claimed_engine(node), claimed_region(node)
        session = await self._sessions.of(node)
        if session is None:
            session = draft_session(node, offer.endpoint)
            # Before it is sealed: afterwards nothing would show that the record is still missing.
            await self._admissions.record(node, session)
            session = await self._sessions.seal(node, session)
        provider = Provider(
            spiffe_id=node.certificate.spiffe_id,
            endpoint=offer.endpoint,
            models=models,
            evidence_digest=node.evidence.digest.hex(),
            spki_sha256=node.certificate.spki_sha256.hex(),
            session_id=session.session_id,
            lease_until_ms=self._lease_until_ms(node),
            load=offer.load,
            engine=engine,
            region=region,
        )
        key = lease_key(provider.spiffe_id)
        for _ in range(_ATTEMPTS):
            stored = await self._bucket.get(key)
            try:
                await self._bucket.put(key, provider.encode(), stored.revision if stored else 0)
            except StoreConflict:
                continue
            log.info(
                "node registered", node=provider.spiffe_id, endpoint=provider.endpoint, session=provider.session_id
            )
            return provider
        raise StoreConflict(f"{key} keeps changing: is a second node running under this name?")

    async def renew(self, node: Lease, load: Load, draining: bool) -> Provider:
        """Extend a node's lease. Raises `LeaseUnknown` when this very key has none, and the store's refusals."""
        known = self._known(node.certificate.spiffe_id)
        if known is not None and _is_of(known[0], node):
            # Reading it first would cost as much again, and what is not the newest is not replaced.
            with suppress(StoreConflict):
                return await self._extend(node, *known, load, draining)
        return await self._extend(node, *await self._of(node), load, draining)

    async def _extend(self, node: Lease, provider: Provider, revision: int, load: Load, draining: bool) -> Provider:
        if provider.session_id not in self._kept and not await self._sessions.has(provider.session_id):
            raise LeaseUnknown("the session of this lease is lost: register")
        renewed = replace(provider, lease_until_ms=self._lease_until_ms(node), load=load, draining=draining)
        await self._bucket.put(lease_key(provider.spiffe_id), renewed.encode(), revision)
        return renewed

    async def drain(self, node: Lease) -> None:
        """List a node as draining, until it says otherwise when it renews. Raises what `renew` raises."""
        provider, revision = await self._of(node)
        if not provider.draining:
            await self._bucket.put(lease_key(provider.spiffe_id), replace(provider, draining=True).encode(), revision)

    async def end(self, node: Lease) -> None:
        """End a node's lease, if this very key has one."""
        with suppress(LeaseUnknown):
            provider, revision = await self._of(node)
            await self._bucket.delete(lease_key(provider.spiffe_id), revision)

    async def withdraw(self, provider: Provider) -> bool:
        """Delete what is stored under a name, if it is still about this key; say whether it was.

        Whoever admits the key again has to record that again. Raises the store's refusals.
        """
        key = lease_key(provider.spiffe_id)
        for _ in range(_ATTEMPTS):
            stored = await self._bucket.get(key)
            listed = None if stored is None else _read(stored.value)
            if stored is None or listed is None or listed.spki_sha256 != provider.spki_sha256:
                return False
            # Before the record goes: if it stays, it is judged again, and from then on nothing names its session.
            await self._sessions.end_admission(listed.spki_sha256, listed.session_id)
            with suppress(StoreConflict):  # Then it has renewed meanwhile.
                await self._bucket.delete(key, stored.revision)
                return True
        raise StoreConflict(f"{key} keeps changing")

    async def _of(self, node: Lease) -> tuple[Provider, int]:
        stored = await self._bucket.get(lease_key(node.certificate.spiffe_id))
        if stored is None:
            raise LeaseUnknown("no lease under this name: register")
        provider = _read(stored.value)
        if provider is None or not _is_of(provider, node):
            raise LeaseUnknown("the lease under this name is another key's: register")
        return provider, stored.revision

    def _lease_until_ms(self, node: Lease) -> int:
        return int(min(self._clock() + self._lease_seconds, node.until) * 1000)


def _is_host(host: str) -> bool:
    """An address, or labels that a resolver takes; a last label of digits alone would be a misspelt address."""
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
        elif host.rpartition(".")[2].isdigit():
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return host.startswith("[") or all(_LABEL.fullmatch(label) for label in host.split("."))


def _read(record: bytes) -> Provider | None:
    """What no registry of this version wrote is no lease: the node registers, which replaces it."""
    try:
        return decode(record)
    except ProviderRecordMalformed as error:
        log.error("a stored provider is passed over", detail=str(error))
        return None


def _is_of(provider: Provider, node: Lease) -> bool:
    return provider.spki_sha256 == node.certificate.spki_sha256.hex()
