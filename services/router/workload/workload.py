"""It is responsible for the router's own ACI identity: which keyset it serves under, and which others it still honours.

A keyset's private keys are dropped when it ends. Time here never goes back, as the host's clock may: what has ended
would be in force again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from libs.aci.keyset import Keyset, TlsKey
from services.router.errors import KeysetEnded
from services.router.workload.generation import E2eeKey, Generation


class Workload:
    """The keysets of this process: the newest, which everybody is shown, and those before it until they end."""

    def __init__(
        self,
        subject: str,
        lifetime_seconds: int,
        tls_keys: tuple[TlsKey, ...],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """The first keyset is born now. Every one of them lists `tls_keys`. `clock` is in Unix seconds."""
        self._subject = subject
        self._lifetime_seconds = lifetime_seconds
        self._tls_keys = tls_keys
        self._clock = clock
        self._now = clock()
        self._newest = self.bear()
        self._earlier: tuple[Generation, ...] = ()

    @property
    def newest(self) -> Generation:
        """The one that clients are shown, whether or not it has ended."""
        return self._newest

    @property
    def keyset(self) -> Keyset:
        return self._newest.keyset

    @property
    def keyset_digest(self) -> str:
        return self._newest.digest

    def headers(self) -> dict[str, str]:
        """Return what every response carries that does not say otherwise."""
        return {"X-ACI-Version": "aci/1", "X-ACI-Keyset-Digest": self._newest.digest}

    def bear(self) -> Generation:
        """Make the next keyset. It is served by nobody before `serve`."""
        return Generation.born(self._subject, int(self.now()) + self._lifetime_seconds, self._tls_keys)

    def serve(self, generation: Generation) -> None:
        """Serve under a keyset from now on. The log MUST hold it. Those before it are honoured until they end."""
        self._earlier = (*self._earlier, self._newest)
        self._newest = generation
        self.drop_ended()

    def held(self) -> tuple[Generation, ...]:
        """Return every keyset that has not ended, the newest first."""
        self.drop_ended()
        held = (self._newest, *reversed(self._earlier))
        return tuple(generation for generation in held if not self._has_ended(generation))

    def drop_ended(self) -> None:
        """Forget the keys of keysets that have ended. The newest is kept for its name, and does nothing any more."""
        self._earlier = tuple(generation for generation in self._earlier if not self._has_ended(generation))

    def lasting(self, seconds: float, named: str | None = None) -> Generation:
        """Return the keyset under which to do what takes so long: the one of this digest if it is held and lasts, else
        the newest. Raises `KeysetEnded`.
        """
        lasts = [generation for generation in self.held() if self.now() + seconds < generation.not_after]
        for generation in lasts:
            if generation.digest == named:
                return generation
        if self._newest in lasts:
            return self._newest
        raise KeysetEnded("this router's keyset ends, and no other is in the log yet")

    def listing(self, text: str) -> tuple[Generation, E2eeKey] | None:
        """Return the E2EE key that a client means, and the keyset that lists it; None if no keyset in force does."""
        for generation in self.held():
            for key in generation.e2ee_keys:
                if key.listed_as(text):
                    return generation, key
        return None

    def now(self) -> float:
        """Return the latest time that was seen, Unix seconds."""
        self._now = max(self._now, self._clock())
        return self._now

    def _has_ended(self, generation: Generation) -> bool:
        return self.now() >= generation.not_after
