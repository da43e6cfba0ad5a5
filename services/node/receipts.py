"""It is responsible for this node's own receipts: ACI receipts as a direct service signs them (section 7), over the
bodies that went to its engine and came from it.

The key is born here, lives as long as this process and stands in the evidence claims, so whoever has the evidence can
check a receipt without asking this node for anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.aci import keyset, receipt
from libs.aci.keyset import Keyset
from libs.aci.receipt_events import Event, Generated, PolicyInForce, RequestForwarded, RequestReceived, ResponseReturned

KEY_ID = "node-receipt"

_DAY_SECONDS = 86400
_DAYS = 8


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is receipted. Digests are ACI's form, `sha256:` and hex."""

    endpoint: str
    model: str | None
    """None when the body asks for no model that is served."""
    received: str
    forwarded: str | None
    """None when nothing went to the engine."""
    returned: str
    generated: Generated | None = None
    """None when nothing went to the engine."""


def keyset_of(public_key: bytes, at: int) -> Keyset:
    """Return the keyset at this time, Unix seconds, of the node whose evidence claims this raw Ed25519 receipt key.

    What bounds the key is the evidence that claims it. A keyset has to end soon (ACI section 3.1), so each day has one
    of its own, which ends a week later: it and its digest follow from the claimed key and the date alone.
    """
    not_after = (at // _DAY_SECONDS + _DAYS) * _DAY_SECONDS
    return keyset.build(subject=None, not_after=not_after, receipt_keys={KEY_ID: public_key}, tls_keys=())


@dataclass(frozen=True, slots=True)
class DayKeyset:
    """The keyset of one day."""

    keyset: Keyset
    digest: str
    """In every receipt, so it is computed once."""


class ReceiptSigner:
    """Signs receipts with a key of its own, and says under which keyset."""

    def __init__(
        self,
        keep: Callable[[str, bytes], None] = lambda receipt_id, document: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`keep` is given each receipt with its id; `clock` is in Unix seconds."""
        self._key = Ed25519PrivateKey.generate()
        self._keep = keep
        self._clock = clock
        self._day = -1
        self._today: DayKeyset | None = None

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519."""
        return self._key.public_key().public_bytes_raw()

    @property
    def keyset_digest(self) -> str:
        """Today's."""
        return self._at(int(self._clock())).digest

    def lasting(self, seconds: float) -> DayKeyset:
        """Return today's keyset; it lasts for a week."""
        return self._at(int(self._clock()))

    def sign(self, exchange: Exchange, policy: PolicyInForce) -> bytes:
        """Return the signed receipt, canonical JSON."""
        events: list[Event] = [RequestReceived(exchange.received), policy]
        if exchange.forwarded is not None:
            events.append(RequestForwarded(exchange.forwarded))
        if exchange.generated is not None:
            events.append(exchange.generated)
        events.append(ResponseReturned(exchange.returned))
        served_at = int(self._clock())
        unsigned = receipt.Receipt(
            receipt_id=receipt.fresh_receipt_id(),
            chat_id=None,
            model=exchange.model,
            workload_keyset_digest=self._at(served_at).digest,
            endpoint=exchange.endpoint,
            method="POST",
            served_at=served_at,
            events=tuple(events),
            key_id=KEY_ID,
        )
        signed = receipt.sign(unsigned, self._key)
        self._keep(unsigned.receipt_id, signed)
        return signed

    def _at(self, at: int) -> DayKeyset:
        day = at // _DAY_SECONDS
        if self._today is None or day != self._day:
            found = keyset_of(self.public_key, at)
            self._day, self._today = day, DayKeyset(found, found.digest)
        return self._today
