"""A KMS that reads the log: a disk that was put back is noticed, and nothing is served before the log's end.

The ledger is the real process; the KMS's keys are opened anew over its folder, as a start does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from libs import jcs
from libs.identity.freshness import PolicyKeeper
from libs.policy.orders import RETIRE_KEY, Order, SignedOrder
from libs.policy.revocation import RevocationKind
from services.kms.changes import MAX_EPOCH, Change
from services.kms.currency import Currency, KeyStateBehind
from services.kms.keys import KeyService
from services.kms.log_reading import LogReading
from services.kms.publication import Publication
from services.kms.revocation import Revocations
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh

from .live import LiveMesh

ADA = "spiffe://mesh.test/operator/ada"
MODEL = "models/a"
PATIENCE_SECONDS = 100.0


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


def order(live: LiveMesh, name: str) -> bytes:
    """What two operators signed to retire a key."""
    signed = SignedOrder(Order(TRUST_DOMAIN, RETIRE_KEY, name, 2**33))
    for operator in live.mesh.operators[:2]:
        signed = signed.signed_by(operator)
    return signed.document


@asynccontextmanager
async def reading(reading: LogReading) -> AsyncIterator[None]:
    """Read the log while the body runs."""
    task = asyncio.create_task(reading.keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_current(keys: KeyService) -> bool:
    try:
        keys.listing.page("", 0)
    except KeyStateBehind:
        return False
    return True


async def until_current(keys: KeyService) -> None:
    await until(lambda: is_current(keys))


async def until_nothing_is_unlogged(keys: KeyService) -> None:
    await until(lambda: not keys.book.pages.unlogged)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)


async def until_logged(live: LiveMesh, keys: KeyService | None = None) -> None:
    """Wait until a KMS has heard from the log all that it holds, in whichever order it came there."""
    held, book = live.kms.policy, (keys or live.keys).book
    expected = (held.current.version, held.revocations.digest)
    await until(lambda: (book.pages.place.policy_version, book.pages.place.revocations) == expected)


async def test_a_kms_whose_disk_was_put_back_takes_over_what_the_log_has(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    book = live.mesh.folder / "keys.sealed"
    image = book.read_bytes()
    await live.keys.rotation.rotate(MODEL, 2, ADA)
    await live.keys.rotation.rotate(MODEL, 3, ADA)
    await until_nothing_is_unlogged(live.keys)  # From then on the first book is not written any more.
    book.write_bytes(image)
    with capture_logs() as captured:
        keys, log_reading = live.key_service()
        assert keys.book.newest(MODEL) == 1
        async with reading(log_reading):
            with pytest.raises(KeyStateBehind):
                await keys.rotation.rotate(MODEL, 2, ADA)  # Else epoch 2 would begin a second time.
            await until_current(keys)
            assert keys.book.newest(MODEL) == 3
    gone_back = [entry for entry in captured if "had gone back" in str(entry["event"])]
    assert [(entry["name"], entry["epoch"]) for entry in gone_back] == [(MODEL, 2), (MODEL, 3)]


async def test_an_empty_disk_is_no_way_to_use_a_retired_key(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    await live.keys.rotation.retire(order(live, MODEL), "operator")
    await until_nothing_is_unlogged(live.keys)
    (live.mesh.folder / "keys.sealed").unlink()
    keys, log_reading = live.key_service()
    async with reading(log_reading):
        await until_current(keys)
        assert keys.book.pages.keys[MODEL].retired


async def test_policy_and_revocations_that_were_put_back_alone_are_taken_again(live: LiveMesh, tmp_path: Path) -> None:
    """They are not sealed; the place in the log is, and remembers what had been taken by then."""
    await live.start()
    await until_current(live.keys)
    kms = live.kms.policy
    rules = [rule for rule in live.mesh.draft["key_releases"] if rule["name"] != "models/*"]
    await Publication(kms, live.decisions).publish(live.mesh.successor(kms.current, key_releases=rules))
    await Revocations(kms, live.decisions).revoke(live.mesh.revocation(RevocationKind.MEASUREMENT, "ab" * 32))
    await until_logged(live)
    older = PolicyKeeper(tmp_path / "older", live.mesh.seed, live.mesh.anchors("kms"))
    with capture_logs() as captured:
        keys, log_reading = live.key_service(policy=older)
    assert any("policy or revocations on disk are not those of the log" in str(entry["event"]) for entry in captured)
    async with reading(log_reading):
        await until_current(keys)
        assert (older.current.version, older.revocations.digest) == (2, kms.revocations.digest)
    # What is here already is no reason to read everything again.
    again, _ = live.key_service(policy=older)
    assert again.book.pages.place.token


async def test_entries_that_do_not_count_keep_no_others_from_counting(live: LiveMesh, tmp_path: Path) -> None:
    await live.start()
    await until_current(live.keys)
    stranger = "spiffe://mesh.test/kms/stranger"
    unsigned = jcs.dumps({"order": jcs.loads_object(order(live, MODEL))["order"], "signatures": []})
    for body in (
        {"decision": "rotated", "name": MODEL},
        Change("ledger-keyring", None, 1, stranger, "order", 1, order(live, "ledger-keyring")).to_body(),
        Change(MODEL, None, 1, stranger, "order", 1, unsigned).to_body(),
        Change(MODEL, None, 1, stranger, "order", 1, order(live, "models/b")).to_body(),
        Change("agents/claims", MAX_EPOCH, 1, stranger, "age", 1).to_body(),
        Change("agents/claims", 3, 1, stranger, "age", 1).to_body(),
    ):
        await live.decisions.record(body)
    forged = jcs.loads_object(live.mesh.revocation(RevocationKind.MEASUREMENT, "cd" * 32))
    forged["signature"]["signature"] = "00" * 64
    await live.decisions.revocation(jcs.dumps(forged))
    await live.decisions.record(Change("models/c", 2, 1, stranger, "age", 1).to_body())
    await until(lambda: "models/c" in live.keys.book.pages.keys)
    (live.mesh.folder / "keys.sealed").unlink()
    keys, log_reading = live.key_service()
    with capture_logs() as captured:
        async with reading(log_reading):
            await until_current(keys)
            assert {name: page.epoch for name, page in keys.book.pages.keys.items()} == {"models/c": 2}
            assert not any(page.retired for page in keys.book.pages.keys.values())
    reasons = [entry["reason"] for entry in captured if entry["event"] == "a logged entry does not count"]
    assert reasons[:7] == [
        "KEY_CHANGE_MALFORMED",
        "KEY_NOT_RETIRABLE",
        "ORDER_SIGNATURES_INSUFFICIENT",
        "KEY_CHANGE_NOT_JUSTIFIED",
        "KEY_CHANGE_NOT_JUSTIFIED",
        "KEY_CHANGE_NOT_JUSTIFIED",
        "REVOCATION_SIGNATURE_INVALID",
    ]


async def test_a_kms_that_hears_no_more_of_the_log_is_not_current_and_is_again_when_it_does(live: LiveMesh) -> None:
    await live.start()
    clock = Clock(0.0)
    keys, log_reading = live.key_service(currency=Currency(clock))
    async with reading(log_reading):
        await until_current(keys)
        clock.now += 61
        assert not is_current(keys)
        await live.decisions.record({"decision": "released", "name": MODEL})
        await until_current(keys)


async def test_a_ledger_that_falls_silent_is_asked_anew(live: LiveMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.events.tailing._SILENCE_SECONDS", 1.0)
    await live.start()
    _, log_reading = live.key_service()
    with capture_logs() as captured:
        async with reading(log_reading):
            await until(lambda: any(entry["event"] == "the log fell silent" for entry in captured))


async def test_a_change_that_found_the_outbox_full_is_said_as_soon_as_it_can_be(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    await live.keys.book.change(Change(MODEL, 2, 1, live.member.spiffe_id, ADA, 1))  # No outbox has taken it.
    await live.keys.rotation.rotate(MODEL, 2, ADA)
    await until_nothing_is_unlogged(live.keys)


async def test_what_the_log_did_not_hear_of_is_said_again_after_a_start(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    # As if the process had died between its disk and its outbox.
    await live.keys.book.change(Change(MODEL, 2, 1, live.member.spiffe_id, ADA, 1))
    keys, log_reading = live.key_service()
    assert [change.epoch for change in keys.book.pages.unlogged] == [2]
    async with reading(log_reading):
        await until_nothing_is_unlogged(keys)
    assert keys.book.newest(MODEL) == 2


async def test_without_a_ledger_nobody_is_current(live: LiveMesh) -> None:
    keys, log_reading = live.key_service()
    async with reading(log_reading):
        assert not is_current(keys)
        await live.start()
        await until_current(keys)


async def test_a_start_goes_on_where_the_last_one_stopped(live: LiveMesh) -> None:
    await live.start()
    await until_current(live.keys)
    # A change that comes from the log is written down with the place; the end of a log that is young may have none.
    await live.keys.rotation.rotate(MODEL, 2, ADA)
    await until_nothing_is_unlogged(live.keys)
    assert live.keys.book.pages.place.token
    keys, _ = live.key_service()
    assert keys.book.pages.place.token
