"""It is responsible for one provider as policy lists it: verified by one caller at a time, for all of them.

A verification that fails takes nothing away from one that holds: only time, policy and revocations end that.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

import structlog

from libs.aci.session import Citable, session_id
from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from libs.policy.hardware import TDX
from services.router.proof.citations import AT_LEAST_SECONDS
from services.router.routing.foreign.adapter import Adapter, ForeignNotVerified, Standing
from services.router.routing.foreign.record import SessionRecord
from services.router.routing.foreign.selection import ForeignCandidate, Wanted

TIMED_OUT = "VERIFICATION_TIMED_OUT"
NOT_LISTED = "NOT_LISTED"
SERVES_UNVERIFIED = "SERVES_UNVERIFIED"
"""Policy takes it as it is: for tenants that it names, and for no request that demands verification."""
_NOT_VERIFIED = "NOT_VERIFIED_YET"
_VERIFIED_OTHERWISE = "VERIFIED_OTHERWISE"
_VERIFY_SECONDS = 20.0
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0
_MOST_DOUBLINGS = 6
_AT_MOST_EVERY_SECONDS = 1.0
"""How often requests may have a provider verified anew while that fails."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Judged:
    """What stands, the policy that it was last judged under, and until when it holds under that, Unix seconds."""

    standing: Standing
    policy: Policy
    until: float

    async def under(self, policy: Policy) -> _Judged:
        """Judge it by this policy, unless it was. Raises what `Standing.uphold` raises."""
        if policy is self.policy:
            return self
        # An appraisal takes longer than the loop should wait.
        until = await asyncio.to_thread(self.standing.uphold, policy, int(time.time()))
        return _Judged(self.standing, policy, until)


class Known:
    """One provider and its standing. Another entry in policy makes another of these."""

    def __init__(
        self, provider: ForeignProvider, adapter: Adapter, policy: PolicyKeeper, record: SessionRecord
    ) -> None:
        self.provider = provider
        self.adapter = adapter
        self.refusal = _NOT_VERIFIED
        self.withdrawn = asyncio.Event()
        """Set when policy took it away: nothing more may come of it, `refusal` says why."""
        self._policy = policy
        self._record = record
        self._judged: _Judged | None = None
        self._citable: Citable | None = None
        self._judging = asyncio.Lock()
        self._verifying = asyncio.Lock()
        self._failures = 0
        self._renewal_failed_at: float | None = None
        self._due = 0.0

    @property
    def name(self) -> str:
        """As sessions and receipts call it; no SPIFFE ID looks like it."""
        return f"foreign/{self.provider.name}"

    @property
    def standing(self) -> Standing | None:
        return None if self._judged is None else self._judged.standing

    @property
    def until(self) -> float:
        """Until when what stands holds, Unix seconds; 0 where nothing does."""
        return 0.0 if self._judged is None else self._judged.until

    @property
    def is_live(self) -> bool:
        return self.until > time.time()

    @property
    def session(self) -> bytes | None:
        """The session that could be cited now."""
        return self.standing.session if self.standing is not None and self.is_live else None

    @property
    def citable(self) -> Citable | None:
        """The same, with how it is listed: made once for each session."""
        session = self.session
        if session is None:
            return None
        if self._citable is None or self._citable.document is not session:
            self._citable = Citable.of(session)
        return self._citable

    def candidate(self) -> ForeignCandidate:
        session = self.session
        return ForeignCandidate(
            name=self.name,
            models=self.provider.models,
            endpoints=self.adapter.declaration.endpoints,
            session_id=None if session is None else session_id(session),
            until=self.until,
            tenants=self.provider.tenants,
            verified_at=0.0 if self.standing is None else self.standing.verified_at,
            tee_type=None if session is None else TDX,
        )

    def is_due(self) -> bool:
        """Say whether a verification should begin now."""
        return self._due <= asyncio.get_running_loop().time() and not self._verifying.locked()

    def hasten(self) -> None:
        """Make a verification due."""
        self._due = 0.0

    def withdraw(self, why: str) -> None:
        """End what stands, and what is under way by it."""
        log.warning("foreign provider withdrawn", provider=self.provider.name, reason=why)
        self._judged, self.refusal = None, why
        self.withdrawn.set()

    async def refresh(self) -> None:
        """Verify if it is still due when nobody else does."""
        async with self._verifying:
            if self._due <= asyncio.get_running_loop().time():
                await self._verify()

    async def renew(self, outdated: Standing) -> None:
        """Verify anew what is no longer what was verified. Raises `ForeignNotVerified`.

        Whoever waits while another does it takes what that one got. What is outdated for new connections may go on
        serving those that it fits.
        """
        async with self._verifying:
            if self.standing is outdated and not self._has_just_failed():
                # If whoever asks leaves before the end, it is still to be done.
                self.hasten()
                await self._verify()
                self._renewal_failed_at = asyncio.get_running_loop().time() if self.standing is outdated else None
        if self.standing is outdated:
            raise ForeignNotVerified(self.name, self.refusal)

    async def standing_for(self, wanted: Wanted) -> Standing:
        """Return what stands, if the policy in force lets this request go there now. Raises `ForeignNotVerified`.

        A request MUST be handed to nothing else: since the provider was chosen policy may have changed, or a new
        verification have found less than the one before.
        """
        if (why := await self.refused_by(self._policy.current)) is not None:
            raise ForeignNotVerified(self.name, why)
        if self.standing is None:
            raise ForeignNotVerified(self.name, self.refusal)
        wanted = replace(wanted, tenant=self._policy.current.constraints.of(wanted.tenant_id))
        if not wanted.may_go_to(self.candidate(), time.time()):
            raise ForeignNotVerified(self.name, _VERIFIED_OTHERWISE)
        return self.standing

    async def refused_by(self, policy: Policy) -> str | None:
        """Return the reason for which what stands does not pass under this policy; None where it does, or nothing
        stands. It is judged once for each policy, whoever asks.
        """
        if self.provider not in policy.foreign_providers:
            return NOT_LISTED
        async with self._judging:
            before = self._judged
            if before is None:
                return None
            try:
                judged = await before.under(policy)
            except MeshError as error:
                return error.reason
            if self._judged is before:
                self._judged = judged
        return None

    def _has_just_failed(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._renewal_failed_at is not None and now - self._renewal_failed_at < _AT_MOST_EVERY_SECONDS

    async def _verify(self) -> None:
        """One verification, under the lock."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_VERIFY_SECONDS):
                verified = await self._verified()
        except (MeshError, TimeoutError) as error:
            self.refusal = error.reason if isinstance(error, MeshError) else TIMED_OUT
            self._due = loop.time() + min(_FIRST_RETRY_SECONDS * 2**self._failures, _LONGEST_RETRY_SECONDS)
            self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
            log.warning(
                "foreign provider not verified",
                provider=self.provider.name,
                reason=self.refusal,
                detail=str(error),
            )
            return
        if self.session is not None and verified.standing.session is None:
            log.warning("foreign provider shows less than before", provider=self.provider.name)
        if not self.withdrawn.is_set():
            self._judged = verified
        self._failures = 0
        self._due = loop.time() + rest_seconds(verified.until - time.time())
        declared = self.adapter.declaration
        log.info(
            "foreign provider taken up",
            provider=self.provider.name,
            until=int(verified.until),
            scope=declared.scope,
            session=None if verified.standing.session is None else session_id(verified.standing.session),
            receipts=declared.receipts,
        )

    async def _verified(self) -> _Judged:
        policy = self._policy.require_fresh()
        standing = await self.adapter.verify(policy)
        self.adapter.declaration.require_kept(standing.session)
        await self._record.keep(standing)
        verified = _Judged(standing, policy, standing.until)
        while verified.policy is not self._policy.current:
            # It must hold under the policy that is in force when it is taken up.
            verified = await verified.under(self._policy.require_fresh())
        return verified


def rest_seconds(left: float) -> float:
    """Return when the next verification is due, of one that holds for so long: in half of it, and before what this one
    kept may be let go, as nobody may have cited it.
    """
    return max(min(left, AT_LEAST_SECONDS) / 2, _FIRST_RETRY_SECONDS)
