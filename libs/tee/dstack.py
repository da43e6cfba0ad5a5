"""Responsible for talking to the guest agent: quotes, keys and what the guest says of itself, over one unix socket.

It is the only module that does. What the agent answers about the guest is a claim until a quote proves it. The
agent's socket is the guest's identity: mount it only into the service that needs it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from dstack_sdk import AsyncDstackClient

from libs.errors import Code, MeshError
from libs.tee import eventlog, tdx
from libs.tee.dstack_custody import claim_v0
from libs.tee.eventlog import Event
from libs.tee.nvidia.collected import FORMAT, Collected, read_collected
from libs.tee.nvidia.evidence import VENDOR
from libs.tee.secp256k1 import public_key_of

# The TDX driver makes one quote at a time, and other containers queue for it too.
TIMEOUT_SECONDS = 20.0
_KEY_BYTES = 32
_REPORT_DATA_BYTES = 64
_MAX_REFUSAL = 200

Reply = TypeVar("Reply")


class GuestUnavailable(MeshError):
    """No guest agent answers on the socket."""

    code = Code.UNAVAILABLE
    reason = "GUEST_UNAVAILABLE"


class GuestRefused(MeshError):
    """The guest agent answered with an error."""

    code = Code.FAILED_PRECONDITION
    reason = "GUEST_REFUSED"


class GuestReplyMalformed(MeshError):
    """The guest agent's answer is not of the form that this mesh understands."""

    code = Code.FAILED_PRECONDITION
    reason = "GUEST_REPLY_MALFORMED"


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What the guest says of itself: claims, all of them, good for logs and for preparing evidence."""

    app_id: str
    instance_id: str
    device_id: str
    compose_hash: str
    os_image_hash: str
    # The text whose SHA-256 is the compose hash.
    app_compose: str


@dataclass(frozen=True, slots=True)
class GuestQuote:
    """A quote, cut to its parsed length, and the event log that explains its registers."""

    quote: bytes
    event_log: tuple[Event, ...]
    vm_config: str
    """How the host says that it made the machine, JSON, as the guest was handed it: measured nowhere. Agents before
    dstack 0.5 say nothing."""


@dataclass(frozen=True, slots=True)
class GuestKey:
    """A secret of 32 bytes that the agent derived, and who is said to vouch for it."""

    secret: bytes = field(repr=False)
    claim: bytes
    """What link 0 of the chain signs: the path, as purpose, and the secret's own public key."""
    signature_chain: tuple[bytes, ...]
    """Not verified yet: see `dstack_custody`."""


class _Agent(AsyncDstackClient):
    """The SDK's client, but for one socket alone, on which nobody speaks TLS.

    The SDK prepares itself for other addresses too and reads all of the web's authorities, twice: most of what it takes
    to begin. So what its own `__init__` sets is set here.
    """

    def __init__(self, socket: Path, timeout_seconds: float) -> None:
        self.use_sync_http = False
        self.async_transport = _transport(socket)
        self.base_url = "http://localhost"
        self._timeout = timeout_seconds
        self._client = None
        self._sync_client = None
        self._client_ref_count = 0


def _transport(socket: Path) -> httpx.AsyncHTTPTransport:
    """HTTP over a socket; were it to speak TLS, no authority would be believed."""
    return httpx.AsyncHTTPTransport(uds=str(socket.absolute()), verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


class Guest:
    """One service's guest agent. Use as an async context manager; calls outside of it are a bug."""

    def __init__(self, socket: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._socket = socket
        self._timeout_seconds = timeout_seconds
        self._client: Any = None
        self._quoting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Raise `GuestUnavailable` when there is no socket yet."""
        if not self._socket.exists():
            raise GuestUnavailable(f"no guest agent socket at {self._socket}: is the guest agent running?")
        client: Any = _Agent(self._socket, self._timeout_seconds)
        self._client = await client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        await client.__aexit__(kind, error, trace)

    async def info(self) -> GuestInfo:
        """Ask what the guest is. Raises `GuestUnavailable`, `GuestRefused`, `GuestReplyMalformed`."""

        async def ask() -> GuestInfo:
            reply = await self._client.info()
            return GuestInfo(
                app_id=reply.app_id,
                instance_id=reply.instance_id,
                device_id=reply.device_id,
                compose_hash=reply.compose_hash,
                os_image_hash=reply.os_image_hash,
                app_compose=reply.tcb_info.app_compose,
            )

        return await self._ask(ask)

    async def measured_compose(self) -> str:
        """Return the app-compose text, byte for byte what the compose hash is over."""
        return (await self.info()).app_compose

    async def quote(self, report_data: bytes) -> GuestQuote:
        """Ask for a quote over 64 bytes. Callers queue: the guest makes one at a time."""
        if len(report_data) != _REPORT_DATA_BYTES:
            raise ValueError(f"report data has {_REPORT_DATA_BYTES} bytes, not {len(report_data)}")

        async def ask() -> GuestQuote:
            reply = await self._client.get_quote(report_data)
            # The agent's own JSON may hold members that evidence does not; only these five are measured.
            entries = json.loads(reply.event_log)
            names = ("imr", "event_type", "digest", "event", "event_payload")
            log = eventlog.parse([{name: entry[name] for name in names} for entry in entries])
            return GuestQuote(tdx.cut(bytes.fromhex(reply.quote)), log, reply.vm_config)

        async with self._quoting:
            return await self._ask(ask)

    async def collect_gpus(self, nonce: bytes) -> Collected:
        """Ask every GPU of the guest to answer 32 bytes. Needs dstack 0.6, whose API is another than the SDK's.

        Raises `GuestRefused` where the guest has no GPU or cannot ask it, and `CollectedMalformed`.
        """

        async def ask() -> Collected:
            async with httpx.AsyncClient(transport=_transport(self._socket), timeout=self._timeout_seconds) as client:
                reply = await client.post("http://guest/v1/AttestGpu", json={"nonce": nonce.hex()})
            reply.raise_for_status()
            (bundle,) = reply.json()["bundles"]
            if (bundle["vendor"], bundle["format"]) != (VENDOR, FORMAT):
                raise ValueError("GPU evidence of another vendor or form")
            return read_collected(bytes.fromhex(bundle["evidence"]))

        async with self._quoting:
            return await self._ask(ask)

    async def app_id(self) -> bytes:
        """Return the application id that the guest states: dstack derives and signs its keys for it."""

        async def ask() -> bytes:
            return bytes.fromhex((await self._client.info()).app_id)

        return await self._ask(ask)

    async def key(self, path: str) -> GuestKey:
        """Return the key at a path; its secret is the same for the same app and path.

        The agent's derivation ignores purpose and algorithm: callers MUST name both in the path.
        """

        async def ask() -> GuestKey:
            # The chain names the purpose alone, so the path is that too.
            reply = await self._client.get_key(path, path)
            secret: bytes = reply.decode_key()
            if len(secret) != _KEY_BYTES:
                raise ValueError("a key of another length")
            claim = claim_v0(path, public_key_of(secret))
            return GuestKey(secret, claim, tuple(reply.decode_signature_chain()))

        return await self._ask(ask)

    async def _ask(self, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        if self._client is None:
            raise RuntimeError("the guest is used outside of its context")
        try:
            return await ask()
        except httpx.HTTPStatusError as error:
            raise GuestRefused(f"the guest agent refuses: {_refusal(error.response)}") from error
        except httpx.TimeoutException as error:
            raise GuestUnavailable(
                f"the guest agent at {self._socket} did not answer in {self._timeout_seconds:.0f} s"
            ) from error
        except httpx.TransportError as error:
            raise GuestUnavailable(f"the guest agent at {self._socket} does not answer") from error
        except (ValueError, TypeError, KeyError):
            # Includes what pydantic and the JSON decoder raise. Their texts may quote a key: the chain ends here.
            raise GuestReplyMalformed("the guest agent's answer is not understood: check its version") from None


def _refusal(response: httpx.Response) -> str:
    """Return the agent's own words, which the SDK's error leaves out."""
    try:
        body = response.json()
    except ValueError:
        body = None
    words = body.get("error") if isinstance(body, dict) else None
    return " ".join(str(words or f"HTTP {response.status_code}").split())[:_MAX_REFUSAL]
