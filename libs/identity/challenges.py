"""It is responsible for a challenger's open challenges: signed with its key, spent once, within 60 seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import Code, MeshError
from libs.tee.challenge import Challenge

LIFETIME_SECONDS = 60
_MAX_OPEN = 10_000


class ChallengeNotOpen(MeshError):
    """The challenge is not one of this service's open ones."""

    code = Code.FAILED_PRECONDITION
    reason = "CHALLENGE_NOT_OPEN"


@dataclass(frozen=True, slots=True)
class _Open:
    purpose: str
    issued_at: float
    """Unix seconds."""


class Challenges:
    """The challenges that this process has issued and nobody has spent. They die with it."""

    def __init__(
        self,
        issuer: str,
        signer: Callable[[], tuple[ec.EllipticCurvePrivateKey, bytes]],
        clock: Callable[[], float] = time.time,
        *,
        maximum_age: Callable[[], int] = lambda: LIFETIME_SECONDS,
    ) -> None:
        """`signer` returns the key that signs now and its certificate, DER; `maximum_age` what policy allows, seconds.

        Policy can only make the lifetime shorter, and what it says when a challenge is spent counts.
        """
        self._issuer = issuer
        self._signer = signer
        self._clock = clock
        self._maximum_age = maximum_age
        self._open: OrderedDict[bytes, _Open] = OrderedDict()

    def issue(self, purpose: str) -> Challenge:
        """Make one. The oldest open one gives way when there are too many, so memory is bounded.

        Raises `ChallengeMalformed` for a purpose that nobody could read back.
        """
        now = self._clock()
        key, certificate = self._signer()
        challenge = Challenge.signed(
            issuer=self._issuer, purpose=purpose, now=int(now), private_key=key, certificate_der=certificate
        )
        Challenge.parse(challenge.to_json())
        self._open[challenge.nonce] = _Open(purpose, now)
        while len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return challenge

    def spend(self, nonce: bytes, purpose: str) -> None:
        """Use up a challenge that this process issued for this purpose. Raises `ChallengeNotOpen`.

        Unknown, spent and expired ones, and those for another purpose, are refused alike, so the answer teaches a
        replayer nothing. A refused one is spent too.
        """
        found = self._open.pop(nonce, None)
        lifetime = min(LIFETIME_SECONDS, self._maximum_age())
        if found is None or found.purpose != purpose or found.issued_at + lifetime <= self._clock():
            raise ChallengeNotOpen("take a new challenge and answer it within a minute")
