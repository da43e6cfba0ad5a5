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
from libs.aci.receipt_events import Event, Generated, PolicyInForce, RequestForwarded, RequestReceived, ResponseReturned

KEY_ID = "node-receipt"

_NO_END = 253402300799
"""The year 9999. What bounds the key is the evidence that claims it; with a constant here, the keyset and so its digest
follow from the claimed key alone."""


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


def keyset_of(public_key: bytes) -> keyset.Keyset:
    """Return the keyset of the node whose evidence claims this raw Ed25519 receipt key."""
    return keyset.build(subject=None, not_after=_NO_END, receipt_keys={KEY_ID: public_key}, tls_keys=())


class ReceiptSigner:
    """Signs receipts with a key of its own."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._keyset_digest = keyset_of(self.public_key).digest

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, exchange: Exchange, policy: PolicyInForce, *, clock: Callable[[], float] = time.time) -> bytes:
        """Return the signed receipt, canonical JSON."""
        events: list[Event] = [RequestReceived(exchange.received), policy]
        if exchange.forwarded is not None:
            events.append(RequestForwarded(exchange.forwarded))
        if exchange.generated is not None:
            events.append(exchange.generated)
        events.append(ResponseReturned(exchange.returned))
        unsigned = receipt.Receipt(
            receipt_id=receipt.fresh_receipt_id(),
            chat_id=None,
            model=exchange.model,
            workload_keyset_digest=self._keyset_digest,
            endpoint=exchange.endpoint,
            method="POST",
            served_at=int(clock()),
            events=tuple(events),
            key_id=KEY_ID,
        )
        return receipt.sign(unsigned, self._key)
