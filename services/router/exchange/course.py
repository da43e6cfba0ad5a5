"""Responsible for one exchange as it has gone so far: what was asked, who was handed it, and what its receipt says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.aci.encoding import digest
from libs.aci.endpoints import Endpoint
from libs.aci.receipt import fresh_receipt_id
from libs.aci.receipt_events import (
    Aborted,
    KnownEvent,
    Metered,
    PolicyInForce,
    RequestForwarded,
    RequestReceived,
    ResponseReturned,
    SealedUnder,
)
from libs.aci.receipt_events import UpstreamFailed as NoUpstream
from libs.aci.usage import Tokens
from libs.policy.document import Policy
from services.router.admission.tenants import Tenant
from services.router.e2ee.opening import Envelope, Opened
from services.router.errors import RouterError
from services.router.exchange.ends import End, Why
from services.router.exchange.volume import Volume
from services.router.exchange.withholding import Withholding
from services.router.prompt import Constraints
from services.router.proof.issuance import Draft
from services.router.routing.hop import Reached
from services.router.workload.generation import Generation

ANSWER_MARGIN_SECONDS = 1.0
"""What is kept back of a request's time to answer in."""
_NO_MODEL = "none"


@dataclass(frozen=True, slots=True)
class Request:
    """An authenticated request. `deadline` is in the event loop's time; `why` is asked if its reader stops."""

    endpoint: Endpoint
    body: bytes
    tenant: Tenant
    request_id: str
    deadline: float
    why: Why
    sealing: Mapping[str, str] = field(default_factory=dict)
    """The headers by which it asks for end-to-end encryption, names in lower case; none if it came in clear."""
    unread: RouterError | None = None
    """Why its body is not there, if it could not be read; it is refused for that."""
    keyset_digest: str | None = None
    """The keyset that its client says it verified. Nothing rests on it: the client sees which one served."""


@dataclass(frozen=True, slots=True)
class Started:
    """What the response is; bytes follow. For a buffered response everything is committed by now."""

    status: int
    content_type: str
    receipt_id: str
    keyset_digest: str
    """Of the keyset under which its receipt is signed."""
    sealed: str | None = None
    """The suite under which its content is encrypted."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What it carries beside what every response does."""
    retry_seconds: int | None = None
    """After which asking again may help, if it is a refusal of that kind."""
    length: int | None = None
    """How many bytes follow, where that is known."""


Part = Started | bytes


@dataclass(slots=True)
class Course:
    """How one exchange has gone so far."""

    request: Request
    policy: PolicyInForce
    """The one that it was judged under last: at arrival, then whenever somebody to serve it was chosen."""
    required: bool
    """Whether that policy or the request itself demands verified serving (ACI section 7.5)."""
    body: bytes
    """What was asked, in clear; what came over the wire as long as that could not be opened."""
    generation: Generation
    """The keyset under which it is served, chosen so that it outlives the exchange."""
    envelope: Envelope | None = None
    """How the answer goes back, if the request came encrypted."""
    receipt_id: str = field(default_factory=fresh_receipt_id)
    model: str | None = None
    reached: list[Reached] = field(default_factory=list)
    """Who was handed the prompt, in order: an answer is the last one's."""
    held: Withholding | None = None
    volume: Volume | None = None
    """How much of an answer came, where that is counted."""
    served_at: int | None = None
    """When whoever served was handed the prompt, Unix seconds: then its session had to be current (section 8)."""
    served: KnownEvent | None = None
    refusal: str | None = None
    ended: bool = False
    """Whether the answer came to its end."""
    failed: bool = False
    """Whether what answered was an error, or broke off by itself."""
    aborts: list[End] = field(default_factory=list)
    recorded: bool = False
    """True once somebody else sees to the receipt, whatever happens to this exchange."""
    without_receipt: str | None = None
    """Why it was refused, if it gets no receipt and is only counted."""

    @classmethod
    def begin(cls, request: Request, policy: Policy, generation: Generation) -> Course:
        return cls(request, _in_force(policy), _demands(policy, request), request.body, generation)

    def opened(self, opened: Opened, generation: Generation) -> None:
        """Take note of what was asked, now that it is in clear, and under which keyset."""
        self.body, self.envelope, self.generation = opened.body, opened.envelope, generation

    def head(
        self,
        status: int,
        content_type: str,
        *,
        sealed: str | None = None,
        error: RouterError | None = None,
    ) -> Started:
        """Return what its response is: if it is an error's, with what that carries."""
        headers, retry_seconds = ({}, None) if error is None else (error.headers, error.retry_seconds)
        return Started(status, content_type, self.receipt_id, self.generation.digest, sealed, headers, retry_seconds)

    def judge(self, policy: Policy, constraints: Constraints) -> None:
        """Take note of the policy under which somebody to serve it is chosen now."""
        self.policy = _in_force(policy)
        self.required = constraints.verified or _demands(policy, self.request)

    def draft(self, returned: str, vault_epoch: int | None = None) -> Draft:
        """The receipt's content, in the order of ACI section 7.4. One that is signed without an epoch is sealed later,
        in whichever its vault has then: nobody can know it yet.
        """
        events: list[KnownEvent] = [RequestReceived(digest(self.body)), self.policy]
        if self.envelope is not None:
            events.append(self.envelope.event())
        model = self.model or _NO_MODEL
        if self.reached:
            # A receipt has room for one: what the last was handed, whose answer it is.
            events.append(RequestForwarded(self.reached[-1].forwarded))
            events.extend(reached.outcome for reached in self.reached)
        else:
            events.append(NoUpstream(required=self.required, model_id=model, reason=self.refusal or "not_forwarded"))
        if self.served is not None:
            events.append(self.served)
        tokens = self.tokens
        events.append(Metered(self.request.tenant.key.id, tokens.prompt, tokens.completion))
        events.extend(Aborted(end.value) for end in self.aborts)
        if vault_epoch is not None:
            events.append(SealedUnder(vault_epoch))
        events.append(ResponseReturned(returned))
        return Draft(
            tenant=self.request.tenant,
            receipt_id=self.receipt_id,
            endpoint=self.request.endpoint.path,
            model=self.model,
            chat_id=None if self.held is None else self.held.chat_id,
            events=tuple(events),
            served_at=int(time.time()) if self.served_at is None else self.served_at,
            generation=self.generation,
        )

    @property
    def tokens(self) -> Tokens:
        """What the answer says of its tokens. One that did not come to its end may have counted its beginning alone."""
        if self.held is None or not self.ended:
            return Tokens()
        return self.held.tokens if self.request.endpoint.runs_model else Tokens(0, 0)

    def cost(self) -> int | None:
        """How many tokens it was; None where nobody said, and it was as many as the prompt allowed, perhaps."""
        tokens = self.tokens
        if tokens.prompt is not None and tokens.completion is not None:
            return tokens.prompt + tokens.completion
        if self.failed:
            # Of an answer that is not streamed nothing went out.
            return self.came() if self.held is not None and self.held.streams else 0
        return None if self.reached else 0

    def came(self) -> int:
        """How many tokens of an answer came, by what of it is here; 0 where that is not counted."""
        return 0 if self.volume is None else self.volume.tokens()

    def left(self) -> float:
        """How much of the request's time is left, seconds."""
        return self.request.deadline - asyncio.get_running_loop().time()


def _in_force(policy: Policy) -> PolicyInForce:
    return PolicyInForce(policy.version, "sha256:" + policy.digest.hex())


def _demands(policy: Policy, request: Request) -> bool:
    return policy.constraints.of(request.tenant.tenant_id).verified_only
