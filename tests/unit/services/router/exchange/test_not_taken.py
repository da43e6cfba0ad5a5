"""Receipts that the log does not take: another one has the place of each, under its id, and says what went out."""

from __future__ import annotations

import json

import pytest

from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.errors import MeshError
from libs.events.answers import EntryRejected, PublisherClosed
from libs.events.outbox import OutboxFailed, OutboxShareFull
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from services.router.errors import NotFound
from tests.fakes.ledgers import TENANT, VAULT
from tests.fakes.nodes import STREAMED
from tests.fakes.routers import Answer, RouterBench, aborts, prompt

NOT_TAKEN = [
    EntryRejected("the ledger refused the entry: KEYSET_REFUSED"),
    OutboxShareFull("too much of what waits is this tenant's"),
]
STILL_TO_COME = [
    PublisherClosed("the publisher was closed before the ledger answered"),
    OutboxFailed("cannot write the outbox"),
]


def reason(error: MeshError) -> str:
    return error.reason


async def until_recorded(bench: RouterBench, answer: Answer) -> None:
    """Let the log take receipts again: what it gets is about what this client was told."""
    bench.ledger.broken = None
    async with bench.issuance.recording():
        await bench.logged()
    receipt = bench.only_receipt()
    assert (receipt.receipt_id, aborts(receipt)) == (answer.started.receipt_id, ["ledger_unavailable"])
    assert receipt.returned.body_hash == digest(answer.body)
    assert bench.ledger.of(Kind.AMENDMENT) == []
    stored = await bench.store.receipts.find(receipt.receipt_id, TENANT.tenant_id)
    assert receipts.parse(stored.receipt) == receipt
    assert await bench.store.put_off.oldest(9) == []


@pytest.mark.parametrize("error", NOT_TAKEN, ids=reason)
@pytest.mark.parametrize("body", [prompt(), b"{"], ids=["answer", "refusal"])
async def test_a_receipt_that_the_log_does_not_take_has_one_in_its_place(
    bench: RouterBench, body: bytes, error: MeshError
) -> None:
    bench.ledger.broken = error
    answer = await bench.run(body)
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (503, "ledger_unavailable")
    await until_recorded(bench, answer)


@pytest.mark.parametrize("error", NOT_TAKEN, ids=reason)
async def test_a_stream_whose_receipt_the_log_does_not_take_has_one_in_its_place(
    bench: RouterBench, error: MeshError
) -> None:
    bench.nodes[0].stream()
    bench.ledger.broken = error
    answer = await bench.run(prompt(stream=True))
    assert answer.body.startswith(b"".join(STREAMED[:2]))
    assert b'"type":"ledger_unavailable"' in answer.parts[-1]
    await until_recorded(bench, answer)


async def test_a_receipt_that_the_log_has_taken_and_that_is_not_copied_has_no_other(bench: RouterBench) -> None:
    bench.ledger.evidence_gone = True
    answer = await bench.run(prompt())
    assert answer.started.status == 200
    assert bench.only_receipt().receipt_id == answer.started.receipt_id
    assert (await bench.store.put_off.oldest(9), bench.ledger.of(Kind.AMENDMENT)) == ([], [])
    with pytest.raises(NotFound):
        await bench.store.receipts.find(answer.started.receipt_id, TENANT.tenant_id)


@pytest.mark.parametrize("error", STILL_TO_COME, ids=reason)
async def test_a_receipt_that_the_log_will_still_get_has_none_in_its_place(
    bench: RouterBench, error: MeshError
) -> None:
    bench.ledger.broken = error
    answer = await bench.run(prompt())
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (503, "ledger_unavailable")
    assert await bench.store.put_off.oldest(9) == []


async def test_a_key_whose_record_the_ledger_refuses_is_not_used_again(bench: RouterBench) -> None:
    bench.ledger.broken = EntryRejected("the ledger refused the entry: VAULT_ERASED")
    answer = await bench.run(prompt())
    assert bench.ledger.dropped == [VaultPart(VAULT.vault_id, VAULT.epoch)]
    bench.ledger.opened_for.clear()
    await until_recorded(bench, answer)
    assert bench.ledger.opened_for
