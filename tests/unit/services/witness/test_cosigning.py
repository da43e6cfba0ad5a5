"""The witness's one decision: only what extends the newest checkpoint it cosigned, proven and signed by the log."""

from __future__ import annotations

import base64
import itertools
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from libs.transparency import checkpoint, cosignature, merkle
from libs.transparency.add_checkpoint import AddCheckpoint, WitnessRequestMalformed, newest_path
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.note import Signature, VerifierKey
from services.witness.book import Book, BookBroken, BookDamaged
from services.witness.cosigning import (
    Cosigning,
    LogKeyNotTrusted,
    NotConsistent,
    OldSizeStale,
    OriginUnknown,
    SplitView,
    WatchedLog,
    WitnessRefusal,
)
from services.witness.keys import NAME as KEY_FILE
from services.witness.keys import WitnessKeyDamaged, WitnessKeyMissing, WitnessKeys, load_keys

from .conftest import KEY, NAME, NOW, ORIGIN, OTHER_KEY, VKEY, GrowingLog


def test_what_extends_the_last_tree_is_cosigned_with_both_keys(cosigning: Cosigning, witness_keys: WitnessKeys) -> None:
    log = GrowingLog().grow(70)
    for old, size in itertools.pairwise((0, 1, 1, 3, 64, 70, 70)):
        request = log.request(old, size)
        signed = cosignature.attach(request.note, cosigning.add_checkpoint(request.encode()))
        assert [cosignature.verify_cosignature(signed, key) for key in witness_keys.public] == [NOW, NOW]
        assert cosigning.newest(newest_path(ORIGIN)) == signed
    assert cosigning.newest(newest_path("other.example")) is None


def test_a_rewritten_history_is_refused_whatever_proof_comes_with_it(cosigning: Cosigning) -> None:
    """The log's own key has signed it; the witness is all that stands in its way."""
    honest = GrowingLog().grow(10)
    rewritten = GrowingLog(salt=b"other").grow(20)
    cosigning.add_checkpoint(honest.request(0, 10).encode())
    note = rewritten.note(20)
    proofs: Sequence[Sequence[bytes]] = (
        merkle.consistency_path(rewritten.tree, 10, 20),
        merkle.consistency_path(honest.grow(20).tree, 10, 20),
        [],
        [honest.tree.root(10)],
    )
    for path in proofs:
        with pytest.raises(NotConsistent) as refused:
            cosigning.add_checkpoint(AddCheckpoint(10, tuple(path), note).encode())
        assert refused.value.status == 422
    newest = cosigning.newest(newest_path(ORIGIN))
    assert newest is not None
    assert checkpoint.verify(newest, VKEY).size == 10


def test_two_trees_of_one_size_are_a_split_view(cosigning: Cosigning) -> None:
    cosigning.add_checkpoint(GrowingLog().grow(5).request(0, 5).encode())
    with pytest.raises(SplitView) as refused:
        cosigning.add_checkpoint(GrowingLog(salt=b"other").grow(5).request(5, 5).encode())
    assert refused.value.status == 409


def test_nobody_goes_back_behind_what_was_cosigned(cosigning: Cosigning) -> None:
    log = GrowingLog().grow(10)
    cosigning.add_checkpoint(log.request(0, 8).encode())
    for old, size in ((0, 9), (7, 9), (0, 5), (5, 7), (9, 10)):
        with pytest.raises(OldSizeStale) as refused:
            cosigning.add_checkpoint(log.request(old, size).encode())
        assert (refused.value.status, refused.value.size) == (409, 8)
    with pytest.raises(WitnessRequestMalformed, match="above"):
        cosigning.add_checkpoint(log.request(8, 7).encode())


def test_other_keys_and_other_logs_are_refused(cosigning: Cosigning) -> None:
    with pytest.raises(LogKeyNotTrusted) as refused:
        cosigning.add_checkpoint(GrowingLog().grow(3).request(0, 3, OTHER_KEY).encode())
    assert refused.value.status == 403
    with pytest.raises(OriginUnknown) as unknown:
        cosigning.add_checkpoint(GrowingLog("other.example").grow(3).request(0, 3).encode())
    assert unknown.value.status == 404
    good = GrowingLog().grow(3).request(0, 3)
    forged = AddCheckpoint(0, (), good.note.replace(b"\n3\n", b"\n4\n"))
    with pytest.raises(LogKeyNotTrusted):
        cosigning.add_checkpoint(forged.encode())
    assert cosigning.newest(newest_path(ORIGIN)) is None


def test_lines_of_strangers_are_not_remembered(cosigning: Cosigning) -> None:
    log = GrowingLog().grow(3)
    line = cosignature.cosign(Checkpoint(ORIGIN, 3, log.tree.root(3)), "stranger.example", OTHER_KEY, 1)
    cosigning.add_checkpoint(AddCheckpoint(0, (), cosignature.attach(log.note(3), [line])).encode())
    newest = cosigning.newest(newest_path(ORIGIN))
    assert newest is not None
    assert newest.startswith(log.note(3))
    assert b"stranger" not in newest


def test_an_empty_tree_has_the_empty_trees_root(cosigning: Cosigning) -> None:
    wrong = AddCheckpoint(0, (), checkpoint.sign(Checkpoint(ORIGIN, 0, bytes(32)), KEY))
    with pytest.raises(SplitView):
        cosigning.add_checkpoint(wrong.encode())
    cosigning.add_checkpoint(GrowingLog().request(0, 0).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: body.replace(b"old 4", b"old 04"),
        lambda body: body.replace(b"old 4", b"old -4"),
        lambda body: body.replace(b"old 4", b"Old 4"),
        lambda body: body.replace(b"old 4", b"old " + b"9" * 40),
        lambda body: body.replace(b"old 4", b"old 9223372036854775808"),
        lambda body: body.replace(b"old 4\n", b"old 4\n" + base64.b64encode(bytes(32)) + b"\n" * 64),
        lambda body: body.replace(b"old 4\n", b"old 4\n" + (base64.b64encode(bytes(32)) + b"\n") * 64),
        lambda body: body.replace(b"old 4\n", b"old 4\nAAAA=\n"),
        lambda body: body.replace(b"old 4\n", b"old 4\r\n"),
        lambda body: body.partition(b"\n\n")[0] + b"\n\n",
        lambda body: body.partition(b"\n\n")[0] + b"\n\nnot a note\n",
        lambda body: body + b"x" * (1 << 16),
    ],
)
def test_malformed_requests_are_told_apart_from_refused_ones(
    cosigning: Cosigning, change: Callable[[bytes], bytes]
) -> None:
    log = GrowingLog().grow(9)
    cosigning.add_checkpoint(log.request(0, 4).encode())
    with pytest.raises(WitnessRequestMalformed):
        cosigning.add_checkpoint(change(log.request(4, 9).encode()))


def test_no_changed_byte_of_a_request_moves_the_witness_elsewhere(cosigning: Cosigning) -> None:
    """Whatever is flipped, it is refused, or it is the very same tree that is cosigned."""
    log = GrowingLog().grow(9)
    cosigning.add_checkpoint(log.request(0, 4).encode())
    body = log.request(4, 9).encode()
    for at in range(len(body)):
        try:
            cosigning.add_checkpoint(body[:at] + bytes([body[at] ^ 2]) + body[at + 1 :])
        except (WitnessRefusal, WitnessRequestMalformed):
            continue
        pytest.fail(f"byte {at}")
    cosigning.add_checkpoint(body)


def test_of_two_futures_at_once_one_is_cosigned(tmp_path: Path, witness_keys: WitnessKeys) -> None:
    """Two processes on one book: judging and remembering are one transaction."""
    common = GrowingLog().grow(4)
    watched = {ORIGIN: WatchedLog((VKEY,), None)}
    futures = [GrowingLog().grow(4), GrowingLog().grow(4)]
    futures[1]._salt = b"other"
    with closing(Book(tmp_path, witness_keys.public)) as one, closing(Book(tmp_path, witness_keys.public)) as two:
        first, second = (Cosigning(book, witness_keys, watched, lambda: NOW) for book in (one, two))
        first.add_checkpoint(common.request(0, 4).encode())
        cosigned = 0
        with ThreadPoolExecutor(2) as threads:
            for size in range(5, 15):
                running = [
                    threads.submit(each.add_checkpoint, log.grow(size).request(size - 1, size).encode())
                    for each, log in zip((first, second), futures, strict=True)
                ]
                results = [each.exception() for each in running]
                assert sum(result is None for result in results) <= 1
                cosigned += results.count(None)
        assert cosigned == 10


def test_what_was_cosigned_is_known_after_a_restart(tmp_path: Path, witness_keys: WitnessKeys) -> None:
    log = GrowingLog().grow(9)
    for old, size in ((0, 4), (4, 9)):
        with closing(Book(tmp_path, witness_keys.public)) as book:
            again = Cosigning(book, load_keys(tmp_path, NAME, may_draw=False), {ORIGIN: WatchedLog((VKEY,), None)}, int)
            again.add_checkpoint(log.request(old, size).encode())
    with closing(Book(tmp_path, witness_keys.public)) as book:
        remembered = book.newest(ORIGIN)
        assert remembered is not None
        assert remembered.tree.size == 9


def test_a_book_that_another_hand_wrote_in_does_not_open(tmp_path: Path, witness_keys: WitnessKeys) -> None:
    log = GrowingLog().grow(9)
    with closing(Book(tmp_path, witness_keys.public)) as book:
        signed: Sequence[Signature] = Cosigning(
            book, witness_keys, {ORIGIN: WatchedLog((VKEY,), None)}, lambda: NOW
        ).add_checkpoint(log.request(0, 4).encode())
    lines = "".join(line.line() for line in signed).encode()
    for note in (log.note(3) + lines, log.note(3), b"nothing"):
        with closing(sqlite3.connect(tmp_path / "book.sqlite")) as database, database:
            database.execute("UPDATE logs SET note = ?", (note,))
        with pytest.raises(BookDamaged):
            Book(tmp_path, witness_keys.public)
    (tmp_path / "book.sqlite").write_bytes(b"no database, but as long as the header of one would have to be" * 9)
    with pytest.raises(BookDamaged):
        Book(tmp_path, witness_keys.public)


def test_nothing_is_given_out_that_could_not_be_written(tmp_path: Path, witness_keys: WitnessKeys) -> None:
    with closing(Book(tmp_path, witness_keys.public)) as book:
        cosigning = Cosigning(book, witness_keys, {ORIGIN: WatchedLog((VKEY,), None)}, lambda: NOW)
        with closing(sqlite3.connect(tmp_path / "book.sqlite")) as database:
            database.execute("DROP TABLE logs")
            database.execute("CREATE VIEW logs AS SELECT 'x' AS origin, x'00' AS note, NULL AS attested")
        with pytest.raises(BookBroken):
            cosigning.add_checkpoint(GrowingLog().grow(3).request(0, 3).encode())


def test_a_key_that_evidence_brought_counts_no_more_once_keys_are_configured(book: Book, cosigning: Cosigning) -> None:
    log = GrowingLog().grow(5)
    cosigning.add_checkpoint(log.request(0, 3).encode())
    with book.page(ORIGIN) as page:
        assert page.remembered is not None
        brought = VerifierKey(ORIGIN, OTHER_KEY.public_key().public_bytes_raw())
        page.following = replace(page.remembered, attested=brought)
    with pytest.raises(LogKeyNotTrusted):
        cosigning.add_checkpoint(log.request(3, 5, OTHER_KEY).encode())
    cosigning.add_checkpoint(log.request(3, 5).encode())


def test_keys_are_never_replaced_in_silence(tmp_path: Path, witness_keys: WitnessKeys) -> None:
    again = load_keys(tmp_path, NAME, may_draw=False)
    assert [key.text() for key in again.public] == [key.text() for key in witness_keys.public]
    published = (tmp_path / "verifier-keys").read_text().splitlines()
    assert published == [key.text() for key in again.public]
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(b'"v":1', b'"v":2'))
    with pytest.raises(WitnessKeyDamaged):
        load_keys(tmp_path, NAME, may_draw=True)
    path.unlink()
    with pytest.raises(WitnessKeyMissing):
        load_keys(tmp_path, NAME, may_draw=False)
