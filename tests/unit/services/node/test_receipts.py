"""A node's keyset ends as ACI wants it to, and follows from the claimed key and the date."""

from __future__ import annotations

import pytest

from libs.aci.keyset import KeysetExpired, verify_usable
from libs.aci.receipt import ReceiptOfOtherKeyset, parse, verify_receipt
from libs.aci.receipt_events import PolicyInForce
from libs.client.attestation import LONGEST_KEYSET_SECONDS
from services.node.receipts import Exchange, ReceiptSigner, keyset_of

DAY = 86400
MIDNIGHT = 20_000 * DAY
EXCHANGE = Exchange("/v1/chat/completions", "m", "sha256:" + "01" * 32, None, "sha256:" + "02" * 32)
POLICY = PolicyInForce(1, "sha256:" + "00" * 32)


class Clock:
    now = float(MIDNIGHT)

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("second", [0, 1, DAY // 2, DAY - 1])
def test_at_any_time_the_keyset_is_usable_for_a_week_and_no_longer_than_clients_believe(second: int) -> None:
    at = MIDNIGHT + second
    keyset = keyset_of(ReceiptSigner().public_key, at)
    assert 7 * DAY <= keyset.not_after - at <= 8 * DAY
    verify_usable(keyset, now=at, longest_seconds=LONGEST_KEYSET_SECONDS)
    with pytest.raises(KeysetExpired):
        verify_usable(keyset, now=at + 8 * DAY, longest_seconds=LONGEST_KEYSET_SECONDS)


def test_a_receipt_is_of_the_keyset_of_its_day() -> None:
    clock = Clock()
    signer = ReceiptSigner(clock=clock)
    for now in (MIDNIGHT - 0.5, MIDNIGHT, MIDNIGHT + DAY - 0.5, MIDNIGHT + DAY):
        clock.now = now
        signed = signer.sign(EXCHANGE, POLICY)
        keyset = keyset_of(signer.public_key, int(now))
        assert verify_receipt(signed, keyset).workload_keyset_digest == keyset.digest
        assert (signer.lasting(0).keyset, signer.keyset_digest) == (keyset, keyset.digest)
        with pytest.raises(ReceiptOfOtherKeyset):
            verify_receipt(signed, keyset_of(signer.public_key, int(now) + DAY))


def test_each_receipt_is_kept_by_its_id() -> None:
    kept: dict[str, bytes] = {}
    signed = ReceiptSigner(kept.__setitem__).sign(EXCHANGE, POLICY)
    assert kept == {parse(signed).receipt_id: signed}
