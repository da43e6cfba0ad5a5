"""It is responsible for whom this service believes, and until when.

A lease ties a peer's key to the appraisal of its evidence. It ends with the certificate, with the evidence's age, with
the collateral behind it, or when a newer policy no longer allows what was measured or an operator revokes it; whatever
runs on it is then cancelled. Nothing starts on a judgement that policy has overtaken: the lease is judged again first.
A key that names its successor lets what runs on it rest on the successor's lease instead. One name on one machine has a
few keys: what it may have kept here has a bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from libs.errors import Code, MeshError
from libs.identity.certificate import MeshCertificate
from libs.identity.freshness import PolicyKeeper
from libs.identity.revoked import verify_findings_not_revoked, verify_not_revoked
from libs.policy.document import Policy
from libs.rpc.policies import current_caller
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, SignedBy, appraise
from libs.tee.evidence import Evidence

KEYS_OF_A_NAME = 16
"""Under which one name may hold leases on one machine: renewed every five seconds, streams of over a minute go on."""

log = structlog.get_logger()


class EvidenceMismatch(MeshError):
    """A document that is not the one the certificate names."""

    code = Code.UNAUTHENTICATED
    reason = "EVIDENCE_MISMATCH"


class EvidenceRequired(MeshError):
    """The caller has no lease here: it must present its evidence first."""

    code = Code.UNAUTHENTICATED
    reason = "EVIDENCE_REQUIRED"


@dataclass(frozen=True, slots=True)
class Lease:
    """A peer that is believed until `until` (Unix seconds), unless policy says otherwise before."""

    certificate: MeshCertificate
    evidence: Evidence
    appraisal: Appraisal
    until: float
    policy: Policy = field(repr=False)
    """The one that it was judged under, with what was revoked then."""


def appraise_peer(certificate: MeshCertificate, document: bytes, policy: Policy, ca_spki: bytes, now: float) -> Lease:
    """Return the lease that a peer's evidence earns. Raises `KeyRevoked`, `NodeRevoked`, `EvidenceMismatch` and every
    appraisal refusal.
    """
    verify_not_revoked(certificate.spki_sha256, certificate.spiffe_id, policy)
    evidence = evidences.parse(document)
    if evidence.digest != certificate.evidence_digest:
        raise EvidenceMismatch("the document is not the one that the certificate names")
    appraisal = appraise(
        evidence,
        policy.rules(certificate.role),
        AppraisalContext(
            now=int(now),
            spki=certificate.spki,
            challenge=SignedBy(ca_spki, policy.evidence_max_age_seconds),
            policy_version=policy.version,
        ),
    )
    until = min(
        certificate.not_after,
        appraisal.valid_until,
        evidence.challenge.issued_at + policy.evidence_max_age_seconds,
    )
    return Lease(certificate, evidence, appraisal, until, policy)


def verify_not_named(lease: Lease, shown: bytes, policy: Policy) -> None:
    """Raise if revocations name whoever holds a lease, by what was found of them before, or the key that they showed.

    `shown` is its SHA-256. As quick as `verify_findings_not_revoked`, and as little in the place of a judgement.
    """
    certificate = lease.certificate
    for key in (shown, certificate.spki_sha256):
        verify_not_revoked(key, certificate.spiffe_id, policy)
    verify_findings_not_revoked(lease.appraisal, policy)


def longer(one: Lease, other: Lease) -> Lease:
    """Return the lease that ends later: what a peer proves later never takes from what it proved before."""
    return other if other.until > one.until else one


@dataclass(slots=True)
class _Held:
    lease: Lease
    tasks: set[asyncio.Task[object]] = field(default_factory=set)


def _bearer(lease: Lease) -> tuple[str, str]:
    return lease.certificate.spiffe_id, lease.appraisal.device_id


def caller_lease() -> Lease:
    """Return the lease of whoever makes the running call. Raises `EvidenceRequired` for people, who have none."""
    lease = current_caller().lease
    if not isinstance(lease, Lease):
        raise EvidenceRequired("only a service with evidence may do this")
    return lease


class Leases:
    """The peers that may call this service now, by the SHA-256 of their key."""

    def __init__(self, policy: PolicyKeeper, ca_spki: Callable[[], bytes], clock: Callable[[], float] = time.time):
        self._policy = policy
        self._ca_spki = ca_spki
        self._clock = clock
        self._held: dict[bytes, _Held] = {}
        self._certified: dict[asyncio.Task[object], MeshCertificate] = {}
        """Tasks that run for a certificate alone."""

    def open(self, certificate: MeshCertificate, document: bytes) -> Lease:
        """Appraise a peer and believe it. Raises what `appraise_peer` raises.

        Beyond `KEYS_OF_A_NAME` keys, the oldest lease on which nothing runs ends; where something runs on all of the
        others, the oldest of them with what runs on it: a call that is kept open is no way around the bound.
        """
        lease = appraise_peer(certificate, document, self._policy.current, self._ca_spki(), self._clock())
        held = self._judged(certificate.spki_sha256)
        if held is None:
            held = self._held[certificate.spki_sha256] = _Held(lease)
        held.lease = longer(held.lease, lease)
        log.info("lease opened", peer=certificate.spiffe_id, until=int(lease.until))
        self._make_room(certificate.spki_sha256)
        return held.lease

    def extend(self, spki_sha256: bytes, following: MeshCertificate, document: bytes) -> Lease:
        """Let what rests on a key rest on its successor, for as long as the successor's own evidence earns.

        The caller MUST have verified that the one key named the other. Raises `EvidenceRequired` when the key has no
        live lease, and what `appraise_peer` raises.
        """
        held = self._live(spki_sha256)
        lease = appraise_peer(following, document, self._policy.current, self._ca_spki(), self._clock())
        held.lease = longer(held.lease, lease)
        log.info("lease handed over", peer=following.spiffe_id, until=int(held.lease.until))
        return held.lease

    def of(self, spki_sha256: bytes) -> Lease:
        """Return the live lease of a key. Raises `EvidenceRequired`."""
        return self._live(spki_sha256).lease

    def live(self) -> Iterator[tuple[bytes, Lease]]:
        """The keys that are believed now, each with its lease or its successor's.

        Nobody is judged here: one that policy has overtaken is among them until its turn comes, or it calls.
        """
        now = self._clock()
        return ((key, held.lease) for key, held in self._held.items() if held.lease.until > now)

    def ends_at(self, spki_sha256: bytes) -> float:
        """When the lease of a key ends, Unix seconds; 0 for a key that has none."""
        held = self._judged(spki_sha256)
        return 0.0 if held is None else held.lease.until

    @contextmanager
    def hold(self, spki_sha256: bytes) -> Iterator[None]:
        """Run the current task on a lease: it is cancelled when the lease ends. Raises `EvidenceRequired`."""
        held = self._judged(spki_sha256)
        task = asyncio.current_task()
        if held is None or task is None:
            raise EvidenceRequired("the lease ended before the call began")
        held.tasks.add(task)
        try:
            yield
        finally:
            held.tasks.discard(task)

    @contextmanager
    def hold_certified(self, certificate: MeshCertificate) -> Iterator[None]:
        """Run the current task without a lease: it is cancelled when operators revoke its certificate's bearer."""
        task = asyncio.current_task()
        if task is None:
            raise EvidenceRequired("the call ended before it began")
        self._certified[task] = certificate
        try:
            yield
        finally:
            del self._certified[task]

    def sweep(self) -> None:
        """End what has run out."""
        now = self._clock()
        for key, held in list(self._held.items()):
            if held.lease.until <= now:
                self._end(key, "lease ran out")

    def end_named(self) -> None:
        """End at once what rests on those whom the current policy's revocations name."""
        policy = self._policy.current
        for key, held in list(self._held.items()):
            try:
                verify_not_named(held.lease, key, policy)
            except MeshError as error:
                self._end(key, error.reason)
        for task, certificate in self._certified.items():
            try:
                verify_not_revoked(certificate.spki_sha256, certificate.spiffe_id, policy)
            except MeshError as error:
                log.info("call ended", peer=certificate.spiffe_id, why=error.reason)
                task.cancel()

    def judging(self) -> Iterator[None]:
        """With each step, judge one of those whom policy has overtaken; what rests on a refused one ends."""
        for key, held in list(self._held.items()):
            if self._is_overtaken(held):
                self._judged(key)
                yield

    def _live(self, spki_sha256: bytes) -> _Held:
        held = self._judged(spki_sha256)
        if held is None or held.lease.until <= self._clock():
            raise EvidenceRequired("present the evidence that your certificate names, then call again")
        return held

    def _is_overtaken(self, held: _Held) -> bool:
        return held.lease.policy is not self._policy.current

    def _judged(self, key: bytes) -> _Held | None:
        """Return what is held for a key, judged under the policy of now; None once that has refused it."""
        held = self._held.get(key)
        if held is None or not self._is_overtaken(held):
            return held
        lease, policy = held.lease, self._policy.current
        try:
            # The key that the connection showed as well, where the lease is its successor's.
            verify_not_revoked(key, lease.certificate.spiffe_id, policy)
            held.lease = appraise_peer(
                lease.certificate, lease.evidence.document, policy, self._ca_spki(), self._clock()
            )
        except MeshError as error:
            self._end(key, error.reason)
            return None
        return held

    def _make_room(self, newest: bytes) -> None:
        """End leases of a key's name on its machine that are one too many, this key's excepted.

        Of its machine only: whoever takes a name elsewhere ends nothing of its bearer's.
        """
        of = _bearer(self._held[newest].lease)
        others = [key for key, held in self._held.items() if key != newest and _bearer(held.lease) == of]
        # Stable: within each kind the oldest stays first.
        others.sort(key=lambda key: bool(self._held[key].tasks))
        for key in others[: max(0, len(others) + 1 - KEYS_OF_A_NAME)]:
            self._end(key, "newer keys took its place")

    def _end(self, key: bytes, why: str) -> None:
        held = self._held.pop(key)
        log.info("lease ended", peer=held.lease.certificate.spiffe_id, why=why, cancelled=len(held.tasks))
        for task in held.tasks:
            task.cancel()
