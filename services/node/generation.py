"""It is responsible for one request: what may reach the engine, what is added to it, and what comes back, hashed.

It relies on the router for who may ask and how much; it never lets a request choose another endpoint, another model or
its own cache salt.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from libs.aci.encoding import digest
from libs.aci.endpoints import JSON, SERVED, Endpoint, paths
from libs.aci.error_bodies import as_anthropic, error_body
from libs.aci.receipt_events import PolicyInForce
from libs.aci.sse import Protocol
from libs.errors import Code, MeshError
from services.node.channel import Answer, EngineUnavailable
from services.node.engine import Engine
from services.node.receipts import Exchange, ReceiptSigner

MAX_BODY_BYTES = 1024 * 1024

_MAX_REFUSAL_BYTES = 64 << 10
_FAILED = "the engine failed to answer this request"
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


class BodyRefused(MeshError):
    """The body cannot be served. The client reads of it in an error of the model's API, with this HTTP status."""

    code = Code.INVALID_ARGUMENT
    reason = "BODY_REFUSED"
    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"


class ModelNotServed(BodyRefused):
    """The model is not one of this node's."""

    code = Code.NOT_FOUND
    reason = "MODEL_NOT_SERVED"
    status = 404
    type = "not_found_error"


class CacheSaltRefused(BodyRefused):
    """A client may not choose in whose prefix cache it looks."""

    reason = "CACHE_SALT_REFUSED"


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


class Generation:
    """Serves requests on one engine."""

    def __init__(
        self,
        engine: Engine,
        models: frozenset[str],
        receipts: ReceiptSigner,
        policy: Callable[[], PolicyInForce],
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._models = models
        self._receipts = receipts
        # Born here and gone with this process, as the cache is that it parts: no other node looks into this one's.
        self._salt_key = secrets.token_bytes(32)

    @property
    def endpoints(self) -> list[str]:
        """The paths at which it is asked, sorted."""
        return paths(self._engine.endpoints)

    async def generate(self, request: Request, timeout_seconds: float) -> AsyncGenerator[Part, None]:
        """Yield the head, the body's bytes as they come, and the conclusion.

        Raises `EndpointNotSupported`, `RequestMalformed`, `BodyTooLarge`, `EngineUnavailable` or `EngineTooSlow`.
        What is wrong with the body is a response. Closing the generator ends the generation at the engine.
        """
        endpoint = verify_request(request, self._engine.endpoints)
        try:
            model = read_model(request.body, self._models)
        except BodyRefused as refusal:
            body = error_body(refusal.type, str(refusal), endpoint.protocol)
            yield Head(refusal.status, JSON)
            yield body
            yield self._conclude(request, None, None, digest(body))
            return
        forwarded = self._for_engine(request, endpoint)
        async with self._engine.post(endpoint.path, forwarded, timeout_seconds) as answer:
            if answer.status in (401, 403) or answer.content_type not in endpoint.content_types:
                # Between the node and its engine, not the client: nothing of it is the model's answer.
                raise EngineUnavailable(f"the engine refuses this node with status {answer.status}")
            returned = hashlib.sha256()
            if answer.status >= 500:
                # The engine's own words may tell of its inside.
                body = error_body("upstream_error", _FAILED, endpoint.protocol)
                yield Head(502, JSON)
                returned.update(body)
                yield body
            elif answer.status >= 400 and endpoint.protocol is Protocol.MESSAGES:
                # Engines speak of it in OpenAI's form here, too.
                body = as_anthropic(await _bounded(answer))
                yield Head(answer.status, JSON)
                returned.update(body)
                yield body
            else:
                yield Head(answer.status, answer.content_type)
                async for chunk in answer.chunks:
                    returned.update(chunk)
                    yield chunk
        yield self._conclude(request, model, forwarded, f"sha256:{returned.hexdigest()}")

    def _for_engine(self, request: Request, endpoint: Endpoint) -> bytes:
        """Add what the engine needs and leave every other byte as it came."""
        if not self._engine.salted or not endpoint.runs_model:
            return request.body
        salt = hmac.digest(self._salt_key, request.tenant_id.encode(), "sha256").hex()
        # The object has a member, `model`, so a comma follows. Serialising anew would change numbers and spacing.
        return b'{"cache_salt":"' + salt.encode() + b'",' + request.body.lstrip()[1:]

    def _conclude(self, request: Request, model: str | None, forwarded: bytes | None, returned: str) -> Conclusion:
        exchange = Exchange(
            endpoint=request.endpoint,
            model=model,
            received=digest(request.body),
            forwarded=None if forwarded is None else digest(forwarded),
            returned=returned,
        )
        return Conclusion(self._receipts.sign(exchange, self._policy()))


async def _bounded(answer: Answer) -> bytes:
    body = b""
    async for chunk in answer.chunks:
        body += chunk
        if len(body) > _MAX_REFUSAL_BYTES:
            raise EngineUnavailable("the engine refuses at too great a length")
    return body


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


def read_model(body: bytes, served: frozenset[str]) -> str:
    """Return the model that the body asks for. Raises `BodyRefused`, `ModelNotServed` or `CacheSaltRefused`.

    The engine judges the rest. It does not judge the model: some engines serve whatever name they are given.
    """
    members = _parse(body)
    if "cache_salt" in members:
        raise CacheSaltRefused("cache_salt is not for clients to choose")
    model = members.get("model")
    if not isinstance(model, str):
        raise BodyRefused("model must be a string")
    if model not in served:
        raise ModelNotServed("no such model is served here")
    return model


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        members = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BodyRefused("the body is not valid JSON in UTF-8") from error
    if not isinstance(members, dict):
        raise BodyRefused("the body must be a JSON object")
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two members of one name this parser and the engine's may take different ones.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
