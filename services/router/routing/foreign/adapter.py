"""It is responsible for what every adapter is: what it declares, how it verifies, what a verification is good for."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from libs.aci.claims import CLAIM_NAMES
from libs.aci.endpoints import Endpoint
from libs.aci.session import session_id, verify_session
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from services.router.errors import UpstreamVerificationFailed
from services.router.routing.hop import Errand, NodeUnavailable, Step

APPRAISED = frozenset({"tee_attested", "tcb_up_to_date", "os_known_good", "serving_software_known_good"})
"""The claims that an appraisal of the provider's own machine can assert or refute."""


class ForeignNotVerified(NodeUnavailable):
    """The provider could not be verified when it had to be, so it was handed nothing more."""

    status = UpstreamVerificationFailed.status
    type = UpstreamVerificationFailed.type
    reason = UpstreamVerificationFailed.reason

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} is not verified: {why}")
        self.why = why


class DeclarationExceeded(MeshError):
    """A verification seals more into a session than its adapter declares that it verifies."""

    code = Code.INTERNAL
    reason = "DECLARATION_EXCEEDED"


class ProofOutdated(NodeUnavailable):
    """The provider is no longer what was verified: it shows another key, or has other sessions. Verify it anew."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an adapter does and does not verify."""

    scope: str
    """`service`: one verification stands for all models of the provider."""
    claims: frozenset[str]
    """The typed claims of ACI §8.3 that it can assert or refute; every other one is unknown. None: there is no session
    of what it verifies.
    """
    receipts: bool
    """Whether the provider's own receipt is verified over each answer."""
    endpoints: frozenset[Endpoint]
    """Where a service of this kind can be asked; whether this one answers there is for it to say."""

    def require_kept(self, document: bytes | None) -> None:
        """Raise `DeclarationExceeded` where a session says what is not declared, or binds no channel."""
        if document is None:
            return
        session = verify_session(document, session_id(document))
        said = {name for name in CLAIM_NAMES if getattr(session.claims, name).status != "unknown"}
        if not self.claims or not said <= self.claims or not session.bindings:
            raise DeclarationExceeded(f"the session of {session.upstream_name} says more than its adapter verifies")


class Standing(Protocol):
    """A provider as one verification left it. It is immutable: a new verification makes a new one."""

    @property
    def session(self) -> bytes | None:
        """The attested session that receipts cite, canonical; None where nothing is verified."""
        ...

    @property
    def supporting(self) -> tuple[bytes, ...]:
        """Session documents, canonical, that the session rests on: the provider's own ones that were accepted."""
        ...

    @property
    def verified_at(self) -> float:
        """When the evidence was made, Unix seconds; 0 where there is none."""
        ...

    @property
    def until(self) -> float:
        """Unix seconds."""
        ...

    def uphold(self, policy: Policy, now: int) -> float:
        """Judge the same evidence again, without asking anybody, and return until when it holds under this policy, Unix
        seconds. Raises why it no longer passes.
        """
        ...

    def address(self, errand: Errand) -> bytes:
        """Return the prompt as this provider is to get it. Raises `ProofOutdated`.

        A body with many values MUST be read beside the event loop, one at a time (`Reading`).
        """
        ...

    def forward(self, errand: Errand, body: bytes) -> AsyncGenerator[Step, None]:
        """See `services.router.routing.routes.Route`; `body` is what `address` returned. Raises `ProofOutdated` before
        anything that the client sees.
        """
        ...


class Adapter(Protocol):
    """Speaks to one provider."""

    @property
    def declaration(self) -> Declaration: ...

    async def verify(self, policy: Policy) -> Standing:
        """Verify the provider now. Raises the first refusal, or what keeps it from answering."""
        ...
