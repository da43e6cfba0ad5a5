"""Epochs are neither lost nor begun twice, whatever order things are heard in and wherever the process dies."""

from __future__ import annotations

import asyncio
import calendar
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from libs import jcs
from libs.policy.releases import KeyRelease
from services.kms.book import (
    KeyBook,
    KeyBookFull,
    KeyBookNotOpened,
    KeyEpochNotNext,
    KeyEpochsFixed,
    KeyEpochUnknown,
    KeyNameMalformed,
    KeyRetired,
)
from services.kms.changes import MAX_EPOCH, Change, ChangeMalformed, logged_change
from services.kms.pages import Page, Pages, Place, parse
from tests.fakes.joined_mesh import Clock

KEY = bytes(range(32))
KMS = "spiffe://mesh.test/kms/1"
OCTOBER_2026 = calendar.timegm((2026, 10, 31, 23, 59, 59))
PLACE = Place(b"token", 1, bytes(32))
ORDER = b'{"order":{}}'
RULE = KeyRelease("data/*", frozenset({"node"}))


def change(epoch: int | None, name: str = "data/a", at_ms: int = 5, kms: str = KMS) -> Change:
    return Change(name, epoch, at_ms, kms, "age", 1, ORDER if epoch is None else b"")


@pytest.fixture
def book(tmp_path: Path) -> KeyBook:
    return KeyBook(tmp_path, KEY)


async def test_a_key_has_its_first_epoch_and_the_next_when_it_begins(book: KeyBook) -> None:
    assert book.resolve("data/a", 0) == book.resolve("data/a", 1) == 1
    with pytest.raises(KeyEpochUnknown):
        book.resolve("data/a", 2)
    await book.change(change(2))
    assert (book.resolve("data/a", 0), book.resolve("data/a", 1), book.resolve("data/a", 2)) == (2, 1, 2)
    assert book.resolve("data/b", 0) == 1


async def test_epochs_begin_one_after_the_other(book: KeyBook) -> None:
    for epoch in (3, 9):
        with pytest.raises(KeyEpochNotNext):
            await book.change(change(epoch))
    await book.change(change(2))
    await book.change(change(3))
    with pytest.raises(KeyEpochNotNext):
        await book.change(change(2))


async def test_a_retired_key_is_refused_for_ever(book: KeyBook, tmp_path: Path) -> None:
    await book.change(change(None))
    again = KeyBook(tmp_path, KEY)
    await again.hear([change(7)], PLACE)
    for opened in (again, KeyBook(tmp_path, KEY)):
        for epoch in (0, 1):
            with pytest.raises(KeyRetired):
                opened.resolve("data/a", epoch)
        for epoch in (1, 8):
            with pytest.raises(KeyRetired):
                await opened.change(change(epoch))


async def test_a_change_is_durable_before_it_counts(book: KeyBook, tmp_path: Path) -> None:
    await book.note_use("data/b", RULE)
    await book.change(change(2))
    again = KeyBook(tmp_path, KEY)
    assert again.pages == book.pages
    assert again.pages.unlogged == (change(2),)


async def test_what_is_not_durable_does_not_count(book: KeyBook, tmp_path: Path) -> None:
    (tmp_path / "keys.sealed").mkdir()  # What no file replaces.
    with pytest.raises(OSError):  # noqa: PT011  # Whichever the file system says.
        await book.change(change(2))
    assert book.newest("data/a") == 1
    assert book.pages.unlogged == ()


async def test_a_change_that_waits_for_the_disk_does_not_count_yet_and_holds_nobody_up(book: KeyBook) -> None:
    changing = asyncio.create_task(book.change(change(2)))
    await asyncio.sleep(0)
    assert not changing.done()
    assert book.resolve("data/a", 0) == 1
    await changing
    assert book.resolve("data/a", 0) == 2


async def test_of_changes_at_once_none_is_lost_and_none_is_made_twice(book: KeyBook, tmp_path: Path) -> None:
    made = await asyncio.gather(
        book.note_use("data/b", RULE),
        book.change(change(2)),
        book.change(change(2, kms="spiffe://mesh.test/kms/2")),
        book.change(change(2, "data/c")),
        book.change(change(3)),
        book.hear([change(2, "data/d")], PLACE),
        book.change(change(None, "data/d")),
        book.change(change(None, "data/d")),
    )
    assert made == [None, True, False, True, True, [change(2, "data/d")], True, False]
    pages = KeyBook(tmp_path, KEY).pages
    assert pages == book.pages
    assert {name: (page.epoch, page.retired) for name, page in pages.keys.items()} == {
        "data/a": (3, False),
        "data/b": (1, False),
        "data/c": (2, False),
        "data/d": (2, True),
    }
    assert pages.unlogged == (change(2), change(2, "data/c"), change(3), change(None, "data/d"))


async def test_a_caller_who_goes_away_parts_not_what_is_durable_from_what_counts(book: KeyBook, tmp_path: Path) -> None:
    leaving = asyncio.create_task(book.change(change(2)))
    following = asyncio.create_task(book.change(change(3)))
    for _ in range(2):
        await asyncio.sleep(0)
        leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await following
    assert book.newest("data/a") == 3
    assert KeyBook(tmp_path, KEY).pages == book.pages


async def test_a_caller_who_goes_away_before_its_turn_changes_nothing(book: KeyBook) -> None:
    first = asyncio.create_task(book.change(change(2)))
    leaving = asyncio.create_task(book.change(change(3)))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await first
    assert book.newest("data/a") == 2


async def test_changes_make_the_same_book_in_whatever_order_they_are_heard(tmp_path: Path) -> None:
    heard = [change(2, at_ms=20), change(3, at_ms=30), change(None, "data/b"), change(2, "data/b"), change(2, at_ms=20)]
    books = set()
    for number, order in enumerate(itertools.permutations(heard)):
        folder = tmp_path / str(number)
        folder.mkdir()
        book = KeyBook(folder, KEY)
        for one in order:
            await book.hear([one], PLACE)
        books.add(tuple(sorted((name, page.epoch, page.retired) for name, page in book.pages.keys.items())))
    assert books == {(("data/a", 3, False), ("data/b", 2, True))}


async def test_what_the_log_confirms_is_no_longer_unlogged(book: KeyBook, tmp_path: Path) -> None:
    await book.change(change(2))
    assert await book.hear([change(2, kms="spiffe://mesh.test/kms/2")], PLACE) == []
    assert book.pages.unlogged == (change(2),)  # Another KMS began the same epoch: ours is still to be said.
    assert await book.hear([change(2)], PLACE) == []
    assert KeyBook(tmp_path, KEY).pages.unlogged == ()


async def test_what_the_log_has_and_the_book_lacked_is_taken_over_and_told(book: KeyBook, tmp_path: Path) -> None:
    assert await book.hear([change(2), change(3), change(3)], PLACE) == [change(2), change(3), change(3)]
    assert KeyBook(tmp_path, KEY).newest("data/a") == 3


async def test_the_place_in_the_log_survives_once_it_is_kept(book: KeyBook, tmp_path: Path) -> None:
    await book.hear([], PLACE)
    later = replace(PLACE, token=b"later")
    await book.hear([], later)  # Only the place moved: a start would read a little again.
    assert KeyBook(tmp_path, KEY).pages.place == PLACE
    await book.keep_place()
    assert KeyBook(tmp_path, KEY).pages.place == later
    for taken in (replace(later, policy_version=2), replace(later, policy_version=2, revocations=b"more")):
        await book.hear([], taken)
        assert KeyBook(tmp_path, KEY).pages.place == taken
    book.forget_place()
    assert book.pages.place == Place(policy_version=2)  # Which policy the log has stays known.


async def test_the_age_of_a_key_counts_from_its_first_use(tmp_path: Path) -> None:
    clock = Clock(100.0)
    book = KeyBook(tmp_path, KEY, clock)
    await book.note_use("data/a", RULE)
    clock.now = 200.0
    await book.note_use("data/a", RULE)
    assert book.pages.keys["data/a"] == Page(1, 100_000)
    await book.change(change(2, at_ms=200_000))
    assert book.pages.keys["data/a"] == Page(2, 200_000)


async def test_vault_keys_have_an_epoch_each_month(tmp_path: Path) -> None:
    clock = Clock(OCTOBER_2026)
    book = KeyBook(tmp_path, KEY, clock)
    october = (2026 - 1970) * 12 + 10
    assert book.resolve("ledger-vault/acme", 0) == october
    assert book.resolve("ledger-vault/acme", october - 7) == october - 7
    with pytest.raises(KeyEpochUnknown):
        book.resolve("ledger-vault/acme", october + 1)
    with pytest.raises(KeyEpochsFixed):
        await book.change(change(october + 1, "ledger-vault/acme"))
    clock.now += 1
    assert book.resolve("ledger-vault/acme", 0) == october + 1
    await book.note_use("ledger-vault/acme", RULE)
    assert book.pages.keys == {}
    await book.change(change(None, "ledger-vault/acme"))
    with pytest.raises(KeyRetired):
        book.resolve("ledger-vault/acme", october)


@pytest.mark.parametrize("name", ["", "A", "a//b", "/a", "a/", "a/*", "../a", "a\n", "a" * 129, "é"])
def test_what_is_no_key_name_is_refused(book: KeyBook, name: str) -> None:
    with pytest.raises(KeyNameMalformed):
        book.resolve(name, 1)


async def test_names_without_end_are_refused(book: KeyBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.kms.book._MAX_KEYS", 2)
    await book.note_use("data/a", RULE)
    await book.note_use("data/b", RULE)
    await book.note_use("data/b", RULE)
    with pytest.raises(KeyBookFull):
        await book.note_use("data/c", RULE)
    with pytest.raises(KeyBookFull):
        await book.change(change(2, "data/c"))
    await book.change(change(2, "data/b"))


async def test_callers_at_once_get_no_more_names_under_one_rule_than_there_are(
    book: KeyBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kms.book._MAX_UNDER_ONE_RULE", 2)
    names = [f"data/{number}" for number in range(5)]
    noted = await asyncio.gather(*(book.note_use(name, RULE) for name in names), return_exceptions=True)
    assert [type(each) for each in noted] == [type(None)] * 2 + [KeyBookFull] * 3
    assert list(book.pages.keys) == names[:2]
    await book.note_use("other", replace(RULE, pattern="other"))


async def test_nothing_in_the_file_can_be_read_or_changed_without_the_key(book: KeyBook, tmp_path: Path) -> None:
    await book.change(change(2))
    path = tmp_path / "keys.sealed"
    sealed = path.read_bytes()
    assert sealed.startswith(b"TMKBOOK1")
    assert b"data/a" not in sealed
    with pytest.raises(KeyBookNotOpened):
        KeyBook(tmp_path, bytes(32))
    for damaged in (
        *(sealed[:size] for size in (0, 7, 8, 20, 36, len(sealed) - 1)),
        *(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in (0, 8, 19, 20, len(sealed) - 1)),
        sealed + b"\0",
    ):
        path.write_bytes(damaged)
        with pytest.raises(KeyBookNotOpened):
            KeyBook(tmp_path, KEY)
        assert path.read_bytes() == damaged


def test_a_logged_change_is_read_strictly() -> None:
    for said in (change(2), change(None)):
        assert logged_change(said.to_body()) == said
    assert logged_change({"decision": "released", "name": "data/a", "epoch": 1}) is None
    for changes in ({"epoch": 1}, {"epoch": True}, {"name": "A"}, {"kms": ""}, {"at_ms": -1}):
        with pytest.raises(ChangeMalformed):
            logged_change({**change(2).to_body(), **changes})
    with pytest.raises(ChangeMalformed):
        logged_change({**change(None).to_body(), "order": "text"})
    # A later version may say more: what it began or ended counts all the same.
    assert logged_change({**change(None).to_body(), "more": 1}) == change(None)


@pytest.mark.parametrize("size", [0, 1, 249, 250, 251, 1000])
def test_a_book_of_any_size_is_written_in_its_canonical_form_and_read_back(size: int) -> None:
    keys = {f"data/{number * 7919 % size}": Page(number + 1, number, number % 3 == 0) for number in range(size)}
    pages = Pages(keys, (change(2), change(None)), PLACE)
    assert parse(pages.encode()) == pages
    assert pages.encode() == jcs.dumps(jcs.loads(pages.encode()))


def test_the_newest_epoch_after_changes_is_the_one_of_the_pages_after_them() -> None:
    pages = Pages({"data/a": Page(3, 1), "data/b": Page(7, 1, retired=True)})
    heard = [change(4), change(9, "data/c"), change(2), change(None), change(8, "data/b"), change(None, "data/d")]
    for number in range(len(heard) + 1):
        after = pages.after(heard[:number])
        for name in ("data/a", "data/b", "data/c", "data/d", "data/e"):
            epoch = after.keys[name].epoch if name in after.keys else 1
            assert pages.newest(name, heard[:number]) == epoch


async def test_epochs_have_an_end(book: KeyBook) -> None:
    await book.hear([change(MAX_EPOCH)], PLACE)
    with pytest.raises(KeyEpochNotNext):
        await book.change(change(MAX_EPOCH + 1))
