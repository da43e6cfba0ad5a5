"""What the stream brings: read in order, with the keys that it needs, and never refused before it is judged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import Code, MeshError
from libs.events.batches import Batch, encode_batch
from libs.events.consume import StreamGap, StreamMessage
from libs.events.records import Entry, seal
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.ledger.intake.arrivals import Arrival, Arrivals
from services.ledger.intake.examination import VaultKeys
from services.ledger.intake.rejections import Refusal
from tests.fakes.examiner_here import ExaminerHere

from .writers import VAULT

ISSUER = b"\x11" * 32
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


class Erased(MeshError):
    code = Code.NOT_FOUND
    reason = "VAULT_ERASED"


class OneVault:
    """One vault; where a test has it refuse, it is erased, or broken, while its key is asked for."""

    def __init__(self, *, refuses: bool = False, held_after: bool = True) -> None:
        self._refuses, self._held_after = refuses, held_after
        self._asked = False

    def holds(self, vault_id: bytes, epoch: int) -> bool:
        return (vault_id, epoch) == (VAULT.vault_id, VAULT.epoch) and (self._held_after or not self._asked)

    async def key(self, vault_id: bytes, epoch: int) -> VaultKey:
        self._asked = True
        if self._refuses:
            raise Erased("for ever")
        return VAULT


LITTLE, MUCH = "", "x" * 16 * 1024


class Examiner(ExaminerHere):
    """Counts the messages that it is asked about."""

    def __init__(self) -> None:
        self.asked = 0

    async def opening(self, read: Sequence[tuple[StreamMessage, Batch]], vaults: VaultKeys) -> Sequence[frozenset[int]]:
        self.asked += len(read)
        return await super().opening(read, vaults)


def message(sequence: int, text: str = MUCH) -> StreamMessage:
    canonical = Entry(Kind.RECEIPT, ISSUER, 1, bytes(32), VAULT.tenant, {"text": text}).canonical()
    record = seal(canonical, Kind.RECEIPT, ISSUER, 1, bytes(32), VAULT)
    return StreamMessage(sequence, encode_batch(ISSUER, 1, [record], KEY), 0)


async def test_everything_is_passed_on_in_order() -> None:
    came: list[StreamMessage | StreamGap] = [message(1), StreamGap(2, 3), StreamMessage(4, b"noise", 0), message(5)]
    first, gap, noise, last = await Arrivals(OneVault(), ExaminerHere()).read(came)
    assert gap == came[1]
    assert [each.sequence for each in (first, noise, last) if isinstance(each, Arrival)] == [1, 4, 5]
    assert isinstance(first, Arrival)
    assert isinstance(first.batch, Batch)
    assert first.opens == {1}
    assert list(first.vaults.values()) == [VAULT]
    assert isinstance(noise, Arrival)
    assert isinstance(noise.batch, Refusal)
    assert not noise.opens


async def test_what_is_little_is_left_to_admission_where_no_more_is_on_the_way() -> None:
    examiner = Examiner()
    (alone,) = await Arrivals(OneVault(), examiner).read([message(1, LITTLE)])
    assert isinstance(alone, Arrival)
    assert (alone.opens, list(alone.vaults.values()), examiner.asked) == (frozenset(), [VAULT], 0)
    (busy,) = await Arrivals(OneVault(), examiner).read([message(1, LITTLE)], on_the_way=16 * 1024)
    assert isinstance(busy, Arrival)
    assert (busy.opens, examiner.asked) == (frozenset({1}), 1)
    many = await Arrivals(OneVault(), examiner).read([message(number, LITTLE) for number in range(1, 65)])
    assert [each.opens for each in many if isinstance(each, Arrival)] == [{1}] * 64
    assert examiner.asked == 1 + 64


async def test_a_vault_that_is_erased_while_its_key_is_asked_for_is_left_to_admission() -> None:
    (arrival,) = await Arrivals(OneVault(refuses=True, held_after=False), ExaminerHere()).read([message(1)])
    assert isinstance(arrival, Arrival)
    assert (arrival.vaults, arrival.opens) == ({}, frozenset())


async def test_a_key_that_is_refused_though_the_vault_is_held_ends_the_reading() -> None:
    with pytest.raises(Erased):
        await Arrivals(OneVault(refuses=True), ExaminerHere()).read([message(1)])
