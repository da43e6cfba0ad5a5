"""It is responsible for nodes that are listed and should not be any more: what policy or operators took from them.

The lease of a mesh connection ends by itself wherever the node calls. Its record would stay until it runs out, at
every registry; so each registry judges every record, whoever admitted the node: once, and whenever its policy changes.
What it judges by is the evidence in the session that the record names.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from libs.aci.session import verify_session
from libs.errors import Code, MeshError
from libs.events.outbox import OutboxFull
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import EvidenceMismatch
from libs.identity.revoked import verify_not_revoked
from libs.policy.document import Policy
from libs.tee import evidence as evidences
from libs.tee.appraisal import AppraisalContext, SignedBy, appraise
from services.registry.admissions import Admissions
from services.registry.directory import Directory
from services.registry.leases import NodeLeases
from services.registry.providers import Provider
from services.registry.sessions import Sessions

_POLL_SECONDS = 1.0
_UNDECIDED = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED})

log = structlog.get_logger()


class SessionLost(MeshError):
    """The store has a node's record and not its session: nothing shows why it was admitted."""

    code = Code.DATA_LOSS
    reason = "SESSION_LOST"


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a record was found good for, and under what."""

    spki_sha256: str
    session_id: str
    policy: Policy


class Withdrawals:
    """Takes nodes off the list."""

    def __init__(
        self,
        directory: Directory,
        sessions: Sessions,
        leases: NodeLeases,
        admissions: Admissions,
        policy: PolicyKeeper,
        ca_spki: Callable[[], bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._sessions = sessions
        self._leases = leases
        self._admissions = admissions
        self._policy = policy
        self._ca_spki = ca_spki
        self._clock = clock
        self._judged: dict[str, _Judged] = {}
        self._unsaid: deque[tuple[Provider, str]] = deque()
        """What was deleted and found the outbox full, with the reason why."""

    async def keep(self) -> None:
        """Judge whoever is new, and everyone as soon as policy changes, for ever."""
        while True:
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._policy.advanced()
            except TimeoutError:
                pass
            await self.judge()

    async def judge(self) -> None:
        """Judge, once, every record that was not judged yet under this policy, and delete those that are refused.

        What an earlier time could not put on record is tried again.
        """
        await self._say()
        listed = self._directory.providers()
        names = {provider.spiffe_id for provider in listed}
        self._judged = {name: judged for name, judged in self._judged.items() if name in names}
        for provider in listed:
            now = _Judged(provider.spki_sha256, provider.session_id, self._policy.current)
            if self._is_judged(provider.spiffe_id, now):
                continue
            try:
                await self._verify(provider, now.policy)
            except MeshError as refusal:
                # Nothing is remembered of it: a registry that is behind may list the very same again at once.
                if refusal.code not in _UNDECIDED:
                    await self._withdraw(provider, refusal)
            else:
                self._judged[provider.spiffe_id] = now

    def _is_judged(self, spiffe_id: str, now: _Judged) -> bool:
        judged = self._judged.get(spiffe_id)
        return (
            judged is not None
            and judged.policy is now.policy
            and (judged.spki_sha256, judged.session_id) == (now.spki_sha256, now.session_id)
        )

    async def _verify(self, provider: Provider, policy: Policy) -> None:
        """Raise unless policy still admits what was admitted."""
        spki_sha256 = bytes.fromhex(provider.spki_sha256)
        verify_not_revoked(spki_sha256, provider.spiffe_id, policy)
        document = await self._sessions.get(provider.session_id)
        if document is None:
            raise SessionLost("there is no session of that id")
        session = verify_session(document, provider.session_id)
        admitted_under = session.extra.get("policy_version")
        if isinstance(admitted_under, int) and admitted_under > policy.version:
            return  # This registry is behind whoever admitted the node; it judges again when its policy changes.
        evidence = evidences.parse(session.evidence)
        if hashlib.sha256(evidence.spki).digest() != spki_sha256:
            raise EvidenceMismatch("the session is about another key than the record")
        context = AppraisalContext(
            now=int(self._clock()),
            spki=evidence.spki,
            challenge=SignedBy(self._ca_spki(), policy.evidence_max_age_seconds),
            policy_version=policy.version,
        )
        # Milliseconds each, and all are judged at once when policy changes.
        await asyncio.to_thread(appraise, evidence, policy.rules("node"), context)

    async def _withdraw(self, provider: Provider, refusal: MeshError) -> None:
        """Delete a record. It is in the log by whichever registry has deleted it."""
        try:
            if await self._leases.withdraw(provider):
                log.warning("node withdrawn", node=provider.spiffe_id, reason=refusal.reason, detail=str(refusal))
                self._unsaid.append((provider, refusal.reason))
                await self._say()
        except MeshError as error:
            log.error("a node is still listed", node=provider.spiffe_id, reason=error.reason)

    async def _say(self) -> None:
        """Record the withdrawals that are not on record yet, in their order."""
        while self._unsaid:
            try:
                await self._admissions.withdrawn(*self._unsaid[0])
            except OutboxFull as error:
                log.error("withdrawals are not on record yet", number=len(self._unsaid), reason=error.reason)
                return
            self._unsaid.popleft()
