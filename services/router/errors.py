"""Responsible for what the router answers when it does not answer: status, stable type, message, gRPC code and reason.

One value serves both faces: HTTP clients see status and body as their protocol has them, gRPC clients `code` and
`reason`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from libs.aci.error_bodies import error_body
from libs.aci.sse import Protocol
from libs.errors import Code, MeshError

_ANTHROPIC_OVERLOADED = 529


class RouterError(MeshError):
    """A refusal or failure that a client may act on. The message MUST hold nothing of a prompt and no secret."""

    status: ClassVar[int]
    type: ClassVar[str]
    error_code: ClassVar[str | None] = None
    """What OpenAI's clients know as the error's code, where they know one."""
    own_headers: Mapping[str, str] = {}
    """What the answer carries beside what every answer does, and `Retry-After`."""
    why: str | None = None
    """The reasons behind this one, where they are other services' or the appraisal's; for the receipt."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What the answer carries beside what every answer does; when to ask again is told to gRPC clients, too."""
        if self.retry_seconds is None:
            return self.own_headers
        return {**self.own_headers, "Retry-After": str(self.retry_seconds)}

    @property
    def body(self) -> bytes:
        """The response body, in OpenAI's error shape."""
        return self.told(Protocol.CHAT)[1]

    def told(self, protocol: Protocol) -> tuple[int, bytes]:
        """Return status and body as the protocol's clients know them."""
        overloaded = protocol is Protocol.MESSAGES and self.type in (ServiceUnavailable.type, Overloaded.type)
        status = _ANTHROPIC_OVERLOADED if overloaded else self.status
        return status, error_body(self.type, str(self), protocol, self.error_code)


class InvalidRequest(RouterError):
    """The request is not one that any node could serve."""

    status = 400
    type = "invalid_request_error"
    code = Code.INVALID_ARGUMENT
    reason = "REQUEST_INVALID"


class TooManyValues(InvalidRequest):
    """The body has more JSON values than are read: each takes far more memory than it has bytes."""

    reason = "BODY_VALUES_TOO_MANY"


class Unauthorized(RouterError):
    """No API key, or none that a tenant has. The same for both, so that nothing is learned by guessing."""

    status = 401
    type = "unauthorized"
    code = Code.UNAUTHENTICATED
    reason = "API_KEY_INVALID"


class KeyExpired(Unauthorized):
    """The key was a tenant's until the time that its record gives."""

    reason = "API_KEY_EXPIRED"


class KeyNotScoped(RouterError):
    """The tenant's record lists the key for other purposes."""

    status = 403
    type = "key_not_scoped"
    code = Code.PERMISSION_DENIED
    reason = "KEY_NOT_SCOPED"


class TenantDisabled(RouterError):
    """The tenant administrator has disabled the tenant."""

    status = 403
    type = "tenant_disabled"
    code = Code.PERMISSION_DENIED
    reason = "TENANT_DISABLED"


class TenantRevoked(RouterError):
    """Operators have withdrawn the tenant, whatever keys its record lists."""

    status = 403
    type = "tenant_revoked"
    code = Code.PERMISSION_DENIED
    reason = "TENANT_REVOKED"


class NotFound(RouterError):
    """No such receipt, session or route; or it is another tenant's."""

    status = 404
    type = "not_found"
    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class ModelNotFound(RouterError):
    """The mesh's policy has no such model."""

    status = 404
    type = "not_found_error"
    code = Code.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class EndpointNotSupported(RouterError):
    """The router does not serve this endpoint."""

    status = 404
    type = "not_found"
    code = Code.UNIMPLEMENTED
    reason = "ENDPOINT_NOT_SUPPORTED"


class EndpointNotOffered(RouterError):
    """The model is served, and by nobody at this endpoint. The prompt went nowhere."""

    status = 404
    type = "not_found_error"
    code = Code.UNIMPLEMENTED
    reason = "ENDPOINT_NOT_OFFERED"


class MethodNotAllowed(RouterError):
    """The route exists, under another method."""

    status = 405
    type = "method_not_allowed"
    code = Code.UNIMPLEMENTED
    reason = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.own_headers = {"Allow": ", ".join(allowed)}


class Misdirected(RouterError):
    """The request is for a host that the connection's certificate is not for (RFC 9110, section 7.4)."""

    status = 421
    type = "misdirected_request"
    code = Code.INVALID_ARGUMENT
    reason = "REQUEST_MISDIRECTED"


class SessionNotAccepted(RouterError):
    """None of the sessions that the request pinned can serve it. The prompt went nowhere."""

    status = 412
    type = "session_not_accepted"
    code = Code.FAILED_PRECONDITION
    reason = "SESSION_NOT_ACCEPTED"


class RequestTooSlow(RouterError):
    """The body did not come to its end in time."""

    status = 408
    type = "request_timeout"
    code = Code.DEADLINE_EXCEEDED
    reason = "BODY_TOO_SLOW"


class RequestTooLarge(RouterError):
    """The body is over the limit."""

    status = 413
    type = "request_too_large"
    code = Code.RESOURCE_EXHAUSTED
    reason = "BODY_TOO_LARGE"


class TargetTooLong(RouterError):
    """The request's target is over the limit."""

    status = 414
    type = "uri_too_long"
    code = Code.INVALID_ARGUMENT
    reason = "TARGET_TOO_LONG"


class HeadTooLarge(RouterError):
    """The request's head is over the limit: one field, or all of them together."""

    status = 431
    type = "request_headers_too_large"
    code = Code.INVALID_ARGUMENT
    reason = "HEAD_TOO_LARGE"


class VersionNotSupported(RouterError):
    """The request is of a version of HTTP that this listener does not speak."""

    status = 505
    type = "http_version_not_supported"
    code = Code.UNIMPLEMENTED
    reason = "HTTP_VERSION_NOT_SUPPORTED"


class BodiesBusy(RouterError):
    """The bodies of all requests together, or of one tenant's, take what room there is for them."""

    status = 503
    type = "service_unavailable"
    code = Code.RESOURCE_EXHAUSTED
    reason = "BODIES_BUSY"
    retry_seconds = 1


class ConnectionEnding(RouterError):
    """The connection takes no new request: the router stops, or it has taken as many as one may."""

    status = 503
    type = "service_unavailable"
    code = Code.UNAVAILABLE
    reason = "CONNECTION_ENDING"
    retry_seconds = 0


class RouterStopping(RouterError):
    """The request found no room, and the router stops: nobody waits for room any more. The prompt went nowhere."""

    status = 503
    type = "service_unavailable"
    code = Code.UNAVAILABLE
    reason = "ROUTER_STOPPING"
    retry_seconds = 1


class ContentEncodingNotSupported(RouterError):
    """The body is encoded. What a receipt hashes is what came, so what came has to be what is read."""

    status = 415
    type = "unsupported_media_type"
    code = Code.INVALID_ARGUMENT
    reason = "CONTENT_ENCODING_NOT_SUPPORTED"
    own_headers: Mapping[str, str] = {"Accept-Encoding": "identity"}


class ExpectationFailed(RouterError):
    """The request expects what this router does not do."""

    status = 417
    type = "expectation_failed"
    code = Code.FAILED_PRECONDITION
    reason = "EXPECTATION_FAILED"


class ReportsBusy(RouterError):
    """More fresh reports are asked for than the quote device is to make."""

    status = 429
    type = "rate_limited"
    code = Code.RESOURCE_EXHAUSTED
    reason = "REPORTS_BUSY"
    retry_seconds = 1


class Overloaded(RouterError):
    """Every node that may serve is full, and as many wait as may, or this one has waited as long as it may."""

    status = 429
    type = "overloaded"
    code = Code.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, retry_seconds: int) -> None:
        super().__init__(f"every node that may serve this is busy; try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class InternalError(RouterError):
    """Something is wrong with the router itself; the client learns no more."""

    status = 500
    type = "internal_error"
    code = Code.INTERNAL
    reason = "INTERNAL"


class UpstreamFailed(RouterError):
    """The node did not answer, or not to the end."""

    status = 502
    type = "upstream_error"
    code = Code.UNAVAILABLE
    reason = "ENGINE_UNAVAILABLE"

    def __init__(self, message: str, *, late: bool = False, excused: bool = False) -> None:
        super().__init__(message)
        self.late = late
        """Whether it ran out of the request's time."""
        self.excused = excused
        """Whether this says nothing of who did not answer: another request may be answered."""


class AnswerUndeliverable(UpstreamFailed):
    """An answer came that is too large to be withheld or encrypted, or is no such thing as can be encrypted. What was
    asked for may have decided that, so it says nothing of who answered, and costs what an answer does. Asked again, it
    is likely to end the same way at the same cost, so clients are told not to do that by themselves.
    """

    code = Code.FAILED_PRECONDITION
    reason = "ANSWER_UNDELIVERABLE"
    own_headers: Mapping[str, str] = {"X-Should-Retry": "false"}

    def __init__(self, message: str) -> None:
        super().__init__(message, excused=True)


class UpstreamVerificationFailed(RouterError):
    """No node with a verified, live lease can serve the model. The prompt went nowhere."""

    status = 503
    type = "upstream_verification_failed"
    code = Code.UNAVAILABLE
    reason = "UPSTREAM_VERIFICATION_FAILED"

    def __init__(self, message: str, why: str | None = None) -> None:
        super().__init__(message if why is None else f"{message}: {why}")
        self.why = why


class TenantConstraintsUnmet(RouterError):
    """No node that could serve is what policy demands for this tenant. The prompt went nowhere."""

    status = 503
    type = "tenant_constraints_unmet"
    code = Code.UNAVAILABLE
    reason = "TENANT_CONSTRAINTS_UNMET"

    def __init__(self, unmet: Sequence[str]) -> None:
        names = ", ".join(unmet)
        super().__init__(f"no node is what the mesh's policy demands for this tenant: {names}")
        self.why = f"{self.reason.lower()}: {names}"


class LedgerUnavailable(RouterError):
    """The ledger did not acknowledge the receipt in time, so the response was not released."""

    status = 503
    type = "ledger_unavailable"
    code = Code.UNAVAILABLE
    reason = "LEDGER_UNAVAILABLE"


class KeysetEnded(RouterError):
    """The keyset that clients verified has ended, or ends before the request would, and there is no other to serve
    under.
    """

    status = 503
    type = "keyset_ended"
    code = Code.UNAVAILABLE
    reason = "KEYSET_ENDED"


class TenantsUnavailable(RouterError):
    """Nobody can be authenticated now: the directory does not answer, or not with what verifies."""

    status = 503
    type = "service_unavailable"
    code = Code.UNAVAILABLE
    reason = "TENANTS_UNAVAILABLE"


class ServiceUnavailable(RouterError):
    """Something that this router needs is away; the message names the reason."""

    status = 503
    type = "service_unavailable"
    code = Code.UNAVAILABLE
    reason = "SERVICE_UNAVAILABLE"
