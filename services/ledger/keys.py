"""It is responsible for the ledger's keys from the KMS: asked for by name, opened here, kept in memory only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import grpc.aio
import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.sealed import ReceiverKey, release_info
from libs.rpc.deadline import outgoing_timeout
from libs.rpc.errors import remote_errors
from libs.tee.dstack import GuestKey

_CALL_SECONDS = 5.0
_RETIRE_SECONDS = 15.0
"""The KMS answers once the log holds its decision."""

_FIRST_RETRY_SECONDS = 0.2
_LAST_RETRY_SECONDS = 5.0
_KEY_SIZE = 32
_INDEX_PATH = "teemesh/ledger/index/hmac-sha256/v1"
_AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})

T = TypeVar("T")

log = structlog.get_logger()


class ReleasedKeyWrong(MeshError):
    """The KMS released something that is no key of the epoch asked for."""

    code = Code.UNAUTHENTICATED
    reason = "RELEASED_KEY_WRONG"


@dataclass(frozen=True, slots=True)
class ReleasedKey:
    """A key and which epoch of its name it is."""

    epoch: int
    key: bytes = field(repr=False)


class KmsChannel(Protocol):
    """The KMS as an appraised peer."""

    async def channel(self, timeout: float) -> grpc.aio.Channel: ...


class KeySource(Protocol):
    """Where keys come from."""

    async def release(self, name: str, epoch: int = 0) -> ReleasedKey:
        """Return a key, or raise. `epoch` 0 asks for the newest."""
        ...

    def forget(self, name: str) -> None:
        """Drop every epoch of a key that is held."""
        ...

    async def retire(self, signed_order: bytes) -> None:
        """Have the key that an order is about refused for ever, or raise."""
        ...


class ReleasedKeys:
    """Keys that the KMS released to this process, each asked for once."""

    def __init__(self, kms: KmsChannel, receiver: ReceiverKey, spiffe_id: Callable[[], str]) -> None:
        self._kms = kms
        self._receiver = receiver
        self._spiffe_id = spiffe_id
        self._held: dict[tuple[str, int], ReleasedKey] = {}

    async def release(self, name: str, epoch: int = 0) -> ReleasedKey:
        """Ask once. Raises the KMS's refusal, `PeerUnavailable`, `SealedKeyRefused` or `ReleasedKeyWrong`."""
        held = self._held.get((name, epoch))
        if held is not None:
            return held
        timeout = outgoing_timeout(_CALL_SECONDS)
        stub = kms_pb2_grpc.KmsServiceStub(await self._kms.channel(timeout))
        with remote_errors():
            response = await stub.ReleaseKey(
                kms_pb2.ReleaseKeyRequest(name=name, epoch=epoch, algorithm=kms_pb2.KEY_ALGORITHM_AES_256),
                timeout=outgoing_timeout(_CALL_SECONDS),
            )
        if epoch not in (0, response.epoch):
            raise ReleasedKeyWrong(f"the KMS released epoch {response.epoch} of {name} instead of epoch {epoch}")
        key = self._receiver.open(response.sealed_key, release_info(name, response.epoch, self._spiffe_id()))
        if len(key) != _KEY_SIZE:
            raise ReleasedKeyWrong(f"{name} has {len(key)} bytes")
        released = ReleasedKey(response.epoch, key)
        self._held[name, response.epoch] = released
        return released

    def forget(self, name: str) -> None:
        self._held = {held: key for held, key in self._held.items() if held[0] != name}

    async def retire(self, signed_order: bytes) -> None:
        """Ask once. Raises the KMS's refusal or `PeerUnavailable`."""
        stub = kms_pb2_grpc.KmsServiceStub(await self._kms.channel(_RETIRE_SECONDS))
        with remote_errors():
            await stub.RetireKey(kms_pb2.RetireKeyRequest(signed_order=signed_order), timeout=_RETIRE_SECONDS)


class GuestKeys(Protocol):
    """The guest agent, as far as it derives keys."""

    async def key(self, path: str) -> GuestKey: ...


async def index_key_of(guest: GuestKeys) -> bytes:
    """Return the key under which what is derived from the log lies on disk.

    It is the platform's for this app, not the KMS's: the log is opened before anyone else is asked for anything. It
    keeps nothing secret, and with another one all is derived anew.
    """
    secret = (await guest.key(_INDEX_PATH)).secret
    return HKDF(hashes.SHA256(), _KEY_SIZE, salt=None, info=_INDEX_PATH.encode()).derive(secret)


async def while_away(ask: Callable[[], Awaitable[T]], what: str) -> T:
    """Return what `ask` gives, asking for as long as the KMS is away. Raises at once what waiting cannot mend."""
    delay = _FIRST_RETRY_SECONDS
    while True:
        try:
            return await ask()
        except MeshError as error:
            if error.code not in _AWAY:
                raise
            log.warning("waiting for a key", name=what, reason=error.reason, retry_seconds=delay)
        await asyncio.sleep(delay)
        delay = min(delay * 2, _LAST_RETRY_SECONDS)
