"""It is responsible for appraising evidence that answers a challenge of this service, under the current policy."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from libs.identity.challenges import Challenges
from libs.identity.freshness import PolicyKeeper
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, OwnNonce, appraise

log = structlog.get_logger()


class Appraiser:
    """Spends a challenge and judges the evidence that answers it."""

    def __init__(self, challenges: Challenges, policy: PolicyKeeper, clock: Callable[[], float] = time.time) -> None:
        self._challenges = challenges
        self._policy = policy
        self._clock = clock

    def appraise(self, document: bytes, role: str) -> Appraisal:
        """Raises `ChallengeNotOpen` and every appraisal refusal. A refused document has spent its challenge too."""
        evidence = evidences.parse(document)
        self._challenges.spend(evidence.challenge.nonce)
        policy = self._policy.require_fresh()
        appraisal = appraise(
            evidence,
            policy.rules(role),
            AppraisalContext(
                now=int(self._clock()),
                spki=None,
                challenge=OwnNonce(evidence.challenge.nonce),
                policy_version=policy.version,
            ),
        )
        log.info("evidence appraised", role=role, evidence=evidence.digest.hex())
        return appraisal
