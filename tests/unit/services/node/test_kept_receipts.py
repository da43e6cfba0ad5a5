"""A node's receipts are had again for an hour, and so many at most."""

from __future__ import annotations

from services.node.kept_receipts import KEPT_SECONDS, MOST_KEPT, KeptReceipts, ReceiptNotKept


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def is_kept(kept: KeptReceipts, receipt_id: str) -> bool:
    try:
        kept.find(receipt_id)
    except ReceiptNotKept:
        return False
    return True


def test_a_receipt_is_found_by_its_id_alone() -> None:
    kept = KeptReceipts()
    kept.keep("rcpt-1", b"one")
    assert kept.find("rcpt-1") == b"one"
    for other in ("", "rcpt-", "rcpt-2", "RCPT-1"):
        assert not is_kept(kept, other)


def test_one_that_is_too_old_is_gone() -> None:
    clock = Clock()
    kept = KeptReceipts(clock)
    kept.keep("old", b"o")
    clock.now += KEPT_SECONDS / 2
    kept.keep("new", b"n")
    clock.now += KEPT_SECONDS / 2
    assert (kept.find("old"), kept.find("new")) == (b"o", b"n")
    clock.now += 1
    assert not is_kept(kept, "old")
    assert kept.find("new") == b"n"


def test_a_flood_takes_so_much_memory_and_no_more() -> None:
    kept = KeptReceipts()
    for number in range(MOST_KEPT + 2):
        kept.keep(str(number), b"r")
    assert [is_kept(kept, str(number)) for number in (0, 1, 2, MOST_KEPT + 1)] == [False, False, True, True]
