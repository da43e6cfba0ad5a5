"""It is responsible for one request: what may reach the engine, what is added to it, and what comes back, hashed.

It relies on the router for who may ask and how much; it never lets a request choose another endpoint, another model,
its own cache salt or anything else that the node does not know.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol as Interface

from libs.aci.encoding import digest
from libs.aci.endpoints import JSON, SERVED, Endpoint, paths
from libs.aci.receipt_events import Generated, PolicyInForce
from libs.aci.usage import Tokens
from libs.errors import Code, MeshError
from services.node.asked import Asked, read_body
from services.node.bodies import Bodies, BodyReadTooLate
from services.node.engine import Engine
from services.node.engine_refusals import refusal_of
from services.node.opened_with import WeightsKey
from services.node.receipts import Exchange, ReceiptSigner
from services.node.refused import Refusal
from services.node.salting import SaltKeyMissing, Salts
from services.node.sequences import MOST_SEQUENCES
from services.node.shares import TenantShares
from services.node.stated import Stated

MAX_BODY_BYTES = 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class EndpointNotSupported(MeshError):
    """The endpoint is not one that this node offers."""

    code = Code.UNIMPLEMENTED
    reason = "ENDPOINT_NOT_SUPPORTED"


class RequestMalformed(MeshError):
    """The call's own fields, not the body, break their rules."""

    code = Code.INVALID_ARGUMENT
    reason = "REQUEST_MALFORMED"


class BodyTooLarge(MeshError):
    """The request body is over the limit."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "BODY_TOO_LARGE"


class GpusChangedMeanwhile(MeshError):
    """The answer ended under evidence that shows other GPUs than it began under, so no receipt could name both."""

    code = Code.UNAVAILABLE
    reason = "GPUS_CHANGED_MEANWHILE"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as the router sends it."""

    endpoint: str
    body: bytes
    request_id: str
    tenant_id: str


@dataclass(frozen=True, slots=True)
class Head:
    """Status and media type of the response; comes first."""

    status: int
    content_type: str


@dataclass(frozen=True, slots=True)
class Conclusion:
    """This node's signed receipt, canonical JSON; comes last."""

    receipt: bytes


Part = Head | bytes | Conclusion


@dataclass(frozen=True, slots=True)
class Claimed:
    """What this node's evidence says of its engine."""

    engine: str
    engine_args_sha256: bytes
    weights: Mapping[str, bytes]
    """Of every model that is served, by its id."""
    weights_key: WeightsKey | None = None
    """With what they were opened, where they came encrypted; stands in receipts alone."""


class Standing(Interface):
    """Whether the engine may be asked; `libs.identity.gpu_watch` says it of its GPUs."""

    def hold(self) -> AbstractContextManager[None]:
        """Run the current task on them. Raises where nothing may."""


class Generation:
    """Serves requests on one engine."""

    def __init__(
        self,
        engine: Engine,
        claimed: Claimed,
        receipts: ReceiptSigner,
        policy: Callable[[], PolicyInForce],
        gpus: Standing,
        *,
        named_gpus: Callable[[], str | None] = lambda: None,
        salts: Salts | None = None,
        tenant_parallel: int = 0,
        fetches: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`named_gpus` is what a receipt says of the GPUs, see `EvidencedGpus`; `tenant_parallel`: see `TenantShares`;
        `fetches`: see `Launch`; `clock` is in seconds.

        Raises `SaltKeyMissing` where the engine needs salts.
        """
        if engine.salted and salts is None:
            raise SaltKeyMissing("the engine shares a prefix cache among tenants, and nothing parts it")
        self._engine = engine
        self._gpus = gpus
        self._named_gpus = named_gpus
        self._salts = salts
        self._shares = TenantShares(tenant_parallel)
        # What would never have room is refused at once: its tenant's share counts every sequence of it.
        places = engine.load.capacity
        self._claimed = claimed
        self._policy = policy
        self._bodies = Bodies(
            partial(
                read_body,
                served=frozenset(claimed.weights),
                lacks=engine.lacks,
                most_sequences=min(places, tenant_parallel or places, MOST_SEQUENCES),
                fetches=fetches,
                calling=engine.calling,
            )
        )
        self._receipts = receipts
        self._clock = clock

    @property
    def endpoints(self) -> list[str]:
        """The paths at which it is asked, sorted."""
        return paths(self._engine.endpoints)

    async def generate(self, request: Request, timeout_seconds: float) -> AsyncGenerator[Part, None]:
        """Yield the head, the body's bytes as they come, and the conclusion. The head comes once the answer begins.

        Raises `EndpointNotSupported`, `RequestMalformed`, `BodyTooLarge`, `TenantShareTaken`, `BodyReadTooLate`,
        `EngineUnavailable`, `EngineSilent`, `EngineTooSlow` or `GpusChangedMeanwhile`, and what the standing of the
        GPUs does. What is wrong with the body is a response. Closing the generator ends the generation at the engine.
        """
        ends_at = self._clock() + timeout_seconds
        endpoint = verify_request(request, self._engine.endpoints)
        with ExitStack() as room:
            # Before it is read: for whoever has no room nothing is done here.
            hold = room.enter_context(self._shares.held(request.tenant_id))
            asked = await self._bodies.read(request.tenant_id, request.body, endpoint, timeout_seconds)
            if isinstance(asked, Refusal):
                room.close()
                yield Head(asked.status, JSON)
                yield asked.body
                yield self._conclude(Exchange(request.endpoint, None, digest(request.body), None, digest(asked.body)))
                return
            hold(asked.sequences)
            room.enter_context(self._gpus.hold())
            salt = self._salts.of(request.tenant_id) if self._salts is not None and endpoint.runs_model else None
            forwarded = asked.told if salt is None else _salted(asked.told, salt)
            gpus = self._named_gpus()
            left = ends_at - self._clock()
            if left <= 0.0:
                raise BodyReadTooLate("the request's time was over as its body had been read")
            async with self._engine.post(endpoint, forwarded, left, asked.sequences) as answer:
                refusal = await refusal_of(answer, endpoint, self._engine.requests_faults)
                returned, stated = hashlib.sha256(), Stated(answer.content_type, endpoint.protocol)
                if refusal is not None:
                    yield Head(refusal.status, JSON)
                    returned.update(refusal.body)
                    yield refusal.body
                else:
                    head: Head | None = Head(answer.status, answer.content_type)
                    async for chunk in answer.chunks:
                        if head is not None:
                            # Not sooner: an engine sends a stream's head before it has a place for it, and what has
                            # not begun another node may serve.
                            yield head
                            head = None
                        returned.update(chunk)
                        stated.feed(chunk)
                        yield chunk
                    if head is not None:
                        yield head
            # None: policy has stopped asking for them meanwhile.
            if gpus is not None and self._named_gpus() not in (None, gpus):
                raise GpusChangedMeanwhile("the node's GPUs are others than those that the answer began on")
        yield self._conclude(
            Exchange(
                endpoint=request.endpoint,
                model=asked.model,
                received=digest(request.body),
                forwarded=digest(forwarded),
                returned=f"sha256:{returned.hexdigest()}",
                generated=self._generated(asked, salt, gpus, stated.tokens()),
            )
        )

    def _generated(self, asked: Asked, salt: str | None, gpus: str | None, tokens: Tokens) -> Generated:
        claimed = self._claimed
        key = claimed.weights_key
        return Generated(
            engine=claimed.engine,
            engine_args_sha256=claimed.engine_args_sha256.hex(),
            weights_sha256=claimed.weights[asked.model].hex(),
            sampling=asked.sampling,
            cache_salt_sha256=None if salt is None else hashlib.sha256(salt.encode()).hexdigest(),
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cache_salt_key_epoch=None if salt is None or self._salts is None else self._salts.epoch,
            weights_key=None if key is None else key.name,
            weights_key_epoch=None if key is None else key.epoch,
            gpus=gpus,
        )

    def _conclude(self, exchange: Exchange) -> Conclusion:
        return Conclusion(self._receipts.sign(exchange, self._policy()))


def _salted(body: bytes, salt: str) -> bytes:
    """Add what the engine needs and leave every other byte as it came."""
    # The object has a member, `model`, so a comma follows. Serialising anew would change numbers and spacing.
    return b'{"cache_salt":"' + salt.encode() + b'",' + body.lstrip()[1:]


def verify_request(request: Request, offered: Collection[Endpoint]) -> Endpoint:
    """Return where it goes. Raises `EndpointNotSupported`, `RequestMalformed` or `BodyTooLarge`."""
    endpoint = SERVED.get(request.endpoint)
    if endpoint is None or endpoint not in offered:
        raise EndpointNotSupported(f"this node offers {', '.join(paths(offered))}")
    if _NAME.fullmatch(request.request_id) is None:
        raise RequestMalformed('request_id must be 1 to 64 letters, digits, "-" or "_"')
    if _NAME.fullmatch(request.tenant_id) is None:
        raise RequestMalformed('tenant_id must be 1 to 64 letters, digits, "-" or "_"')
    if len(request.body) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"the request body must be at most {MAX_BODY_BYTES} bytes")
    return endpoint
