"""It is responsible for the keysets of one router process that were verified, and for verifying its next one.

All of them list the TLS keys that the connections end in. A router that shows another one is another process, which is
for a session of its own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from libs.client.attestation import Attested, verify_channel, verify_report
from libs.client.http import Origin
from libs.client.reporting import fetch_report
from libs.client.trust import Trust
from libs.errors import MeshError

_MOST_HELD = 4


class KeysetChanged(MeshError):
    """The router now is another process than the one verified: open a new session before sending more."""

    reason = "KEYSET_CHANGED"


@dataclass(frozen=True, slots=True)
class Verified:
    """One keyset, and the report that was verified for it."""

    attested: Attested
    report: bytes = field(repr=False)
    nonce: str

    @property
    def digest(self) -> str:
        return self.attested.keyset.digest


class VerifiedKeysets:
    """The newest, under which to send, and some before it, by which answers may still be proven."""

    def __init__(self, origin: Origin, trust: Trust, first: Verified, observed: set[str]) -> None:
        self._origin = origin
        self._trust = trust
        self._held = [first]
        self._renewing = asyncio.Lock()
        self.observed = observed
        """SHA-256 (hex) of every TLS key that a connection ended in."""

    @property
    def newest(self) -> Verified:
        return self._held[-1]

    def of(self, digest: str) -> Verified | None:
        return next((verified for verified in self._held if verified.digest == digest), None)

    def admit(self, spki_sha256: str) -> bool:
        """Say whether a connection may end in this key, and take note of it."""
        if spki_sha256 not in self.newest.attested.pins(self._origin.host):
            return False
        self.observed.add(spki_sha256)
        return True

    async def renew(self, named: str | None = None) -> None:
        """Verify the router again, unless the keyset `named` was verified meanwhile. Raises what `verify_router` does,
        and `KeysetChanged`.
        """
        async with self._renewing:
            if named is not None and self.of(named) is not None:
                return
            verified, spki_sha256 = await verify_router(self._origin, self._trust)
            pins = verified.attested.pins(self._origin.host)
            if not self.observed <= pins:
                raise KeysetChanged("the router is another process now: open a new session")
            self.observed.add(spki_sha256)
            self._held = [*(one for one in self._held if one.digest != verified.digest), verified][-_MOST_HELD:]


async def verify_router(origin: Origin, trust: Trust) -> tuple[Verified, str]:
    """Return the keyset of now under the operators' policy, and the TLS key over which its report came.

    Raises the first refusal: the policy's, the report's, the evidence's, or `TlsKeyNotAttested`. No secret was sent.
    """
    now = time.time()
    policy = trust.policy(now)
    fetched = await fetch_report(origin, trust.ca_pem)
    attested = await asyncio.to_thread(verify_report, fetched.report, fetched.nonce, policy, int(now))
    verify_channel(attested, origin.host, fetched.spki_sha256)
    return Verified(attested, fetched.report, fetched.nonce), fetched.spki_sha256
