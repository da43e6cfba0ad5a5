"""It is responsible for judging every node with a live lease again and again, under the policy in force now.

Evidence that convinced everybody yesterday may rest on a patch level, a certificate or a measurement that is refused
today. The registry's word puts a node on the list; what its lease rests on is fetched once, kept in the archive, and
judged on a timer, at once when policy moves, and when the lease is new. Evidence about which nothing has changed leaves
no further record, whichever leases the registry lets come and go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from libs.errors import MeshError
from libs.identity.exchange import EvidenceUnknown
from libs.identity.freshness import PolicyKeeper
from libs.policy.document import Policy
from libs.tee.appraisal import SignedBy
from libs.tee.archived import Question
from services.attestation.appraisal import Appraisals, Recorded
from services.attestation.archive import Archive
from services.attestation.coverage import NOT_APPRAISED, Coverage, Judged, coverage
from services.attestation.nodes import Listed, Shown

_ROLE = "node"
_AT_ONCE = 8
"""So many nodes are judged side by side: judging is computing, and there are other callers."""

_PAUSE_SECONDS = 0.5
_MAX_REMEMBERED = 20_000
"""So many last records are remembered: two for each lease that can be judged, since nodes renew their evidence."""

log = structlog.get_logger()


class Nodes(Protocol):
    """The leases to judge."""

    @property
    def listed(self) -> Mapping[str, Listed]:
        """By SPIFFE ID."""
        ...

    @property
    def unsound(self) -> Mapping[str, str]:
        """Live leases of which nothing can be judged, by SPIFFE ID: why."""
        ...

    async def changed(self) -> None:
        """Wait for the next change of them."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was fetched for a lease; its document was archived with the record."""

    listed: Listed
    spki: bytes


class Sweep:
    """The last verdict about every node."""

    def __init__(
        self,
        nodes: Nodes,
        fetch: Callable[[Listed], Awaitable[Shown]],
        policy: PolicyKeeper,
        ca_spki: Callable[[], bytes],
        archive: Archive,
        appraisals: Appraisals,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._nodes = nodes
        self._fetch = fetch
        self._policy = policy
        self._ca_spki = ca_spki
        self._archive = archive
        self._appraisals = appraisals
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._judged: dict[str, Judged] = {}
        # The last record about a node's evidence, by SPIFFE ID and document digest, the one used longest ago first. It
        # outlives the lease: the registry says when that ends and begins, and records push older ones out.
        self._recorded: dict[tuple[str, bytes], Recorded] = {}

    def judged(self, listed: Listed) -> Judged:
        """Return the last verdict about what this very lease rests on."""
        judged = self._judged.get(listed.spiffe_id)
        return judged if judged is not None and judged.listed == listed else Judged(listed, NOT_APPRAISED)

    def coverage(self, max_age_seconds: int) -> Coverage:
        """What the live leases rest on now; 0 for evidence as old as policy accepts."""
        policy = self._policy.current
        unsound = [Judged(Listed(name, "", b"", b""), reason) for name, reason in self._nodes.unsound.items()]
        return coverage(
            [*(self.judged(listed) for listed in self._nodes.listed.values()), *unsound],
            now=int(self._clock()),
            max_age_seconds=max_age_seconds or policy.evidence_max_age_seconds,
            policy_version=policy.version,
        )

    async def run(self, sweep_seconds: float) -> None:
        """Judge for ever: all on the timer and when policy or revocations move, new leases as they come."""
        while True:
            policy = self._policy.current
            await self.sweep()
            due = time.monotonic() + sweep_seconds
            while self._policy.current is policy and (left := due - time.monotonic()) > 0:
                if self._unjudged():
                    await self.sweep(only_new=True)
                    # A registry whose list never stands still must not keep this service busy.
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    await self._wait(policy, left)

    async def sweep(self, *, only_new: bool = False) -> None:
        """Judge once every node, or those whose lease is not judged yet."""
        listed = dict(self._nodes.listed)
        for gone in self._judged.keys() - listed.keys():
            del self._judged[gone]
            self._seen.pop(gone, None)
        room = asyncio.Semaphore(_AT_ONCE)

        async def judge(node: Listed) -> None:
            async with room:
                self._judged[node.spiffe_id] = await self._judge(node)

        async with asyncio.TaskGroup() as tasks:
            for node in listed.values():
                if not only_new or self.judged(node).reason == NOT_APPRAISED:
                    tasks.create_task(judge(node))

    def _unjudged(self) -> bool:
        return any(self.judged(node).reason == NOT_APPRAISED for node in self._nodes.listed.values())

    async def _wait(self, policy: Policy, seconds: float) -> None:
        """Wait until there may be something to judge before the timer says so."""
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(self._nodes.changed()), tasks.create_task(self._moved())]
            # Both have begun to listen after this; what came before they did is seen here.
            await asyncio.sleep(0)
            if self._policy.current is policy and not self._unjudged():
                await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()

    async def _moved(self) -> None:
        await self._policy.advanced()

    async def _judge(self, listed: Listed) -> Judged:
        try:
            policy = self._policy.require_fresh()
            shown = await self._shown(listed)
            question = Question(
                _ROLE, int(self._clock()), shown.spki, SignedBy(self._ca_spki(), policy.evidence_max_age_seconds)
            )
            about = (listed.spiffe_id, listed.evidence_digest)
            examination, recorded = await self._appraisals.make(
                shown.document,
                policy,
                question,
                spiffe_id=listed.spiffe_id,
                last=self._recorded.get(about),
            )
        except MeshError as error:
            # Not a verdict about the evidence: there is none to judge, nothing to judge it by, or nowhere to record it.
            log.warning("a node is not appraised", node=listed.spiffe_id, reason=error.reason, detail=str(error))
            return Judged(listed, error.reason)
        if recorded is not None:
            self._seen[listed.spiffe_id] = _Seen(listed, shown.spki)
            self._remember(about, recorded)
        evidence, verdict, refusal = examination.evidence, examination.verdict, examination.refusal
        if refusal is not None:
            log.warning("a node's evidence is refused", node=listed.spiffe_id, reason=refusal.reason)
        return Judged(
            listed=listed,
            reason=None if refusal is None else refusal.reason,
            issued_at=None if evidence is None else evidence.challenge.issued_at,
            valid_until=None if isinstance(verdict, MeshError) else verdict.valid_until,
            policy_version=policy.version,
        )

    def _remember(self, about: tuple[str, bytes], recorded: Recorded) -> None:
        self._recorded.pop(about, None)
        self._recorded[about] = recorded
        if len(self._recorded) > _MAX_REMEMBERED:
            del self._recorded[next(iter(self._recorded))]

    async def _shown(self, listed: Listed) -> Shown:
        """What the lease rests on: from the archive when it was fetched for this very lease, else from the node."""
        seen = self._seen.get(listed.spiffe_id)
        if seen is not None and seen.listed == listed:
            try:
                return Shown(seen.spki, await self._archive.evidence(listed.evidence_digest))
            except EvidenceUnknown:
                log.info("archived evidence is fetched again", node=listed.spiffe_id)
        return await self._fetch(listed)
