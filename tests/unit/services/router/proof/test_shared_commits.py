"""Writes that share a commit: each is durable when it returns, and none fails for another."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from services.router.proof.file import ReceiptStoreFailed, StoreFile, connect
from services.router.proof.shared_commits import SharedCommits, Write


@contextmanager
def opened(path: Path) -> Iterator[tuple[StoreFile, list[str]]]:
    """A file, and the statements that it was told."""
    connection = connect(path)
    connection.execute("CREATE TABLE said (number INTEGER PRIMARY KEY)")
    told: list[str] = []
    connection.set_trace_callback(told.append)
    file = StoreFile(connection)
    try:
        yield file, told
    finally:
        file.close()


def saying(number: int) -> Write:
    return lambda transaction: transaction.execute("INSERT INTO said VALUES (?)", (number,))


def said(path: Path) -> list[int]:
    """What somebody else finds in the file: nothing of a transaction that is open."""
    with closing(sqlite3.connect(path)) as other:
        return [number for (number,) in other.execute("SELECT number FROM said ORDER BY number")]


async def test_what_is_asked_for_together_is_committed_together(tmp_path: Path) -> None:
    with opened(tmp_path / "f.db") as (file, told):
        commits = SharedCommits(file)
        await asyncio.gather(*(commits.write(saying(number)) for number in range(40)))
        assert told.count("COMMIT") == 1
        assert said(tmp_path / "f.db") == list(range(40))


async def test_what_is_asked_for_during_a_commit_goes_with_the_next(tmp_path: Path) -> None:
    with opened(tmp_path / "f.db") as (file, told):
        commits, later = SharedCommits(file), list[asyncio.Future[None]]()
        loop = asyncio.get_running_loop()

        def more() -> None:
            later.extend(asyncio.ensure_future(commits.write(saying(number))) for number in range(1, 10))

        def first(transaction: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(more)
            saying(0)(transaction)

        await commits.write(first)
        await asyncio.gather(*later)
        assert told.count("COMMIT") == 2
        assert said(tmp_path / "f.db") == list(range(10))


async def test_each_is_durable_when_it_returns(tmp_path: Path) -> None:
    with opened(tmp_path / "f.db") as (file, _):
        commits = SharedCommits(file)

        async def write(number: int) -> None:
            await commits.write(saying(number))
            assert number in said(tmp_path / "f.db")

        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(write(number))


async def test_one_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    with opened(tmp_path / "f.db") as (file, _):
        commits = SharedCommits(file)
        refused = await asyncio.gather(
            *(commits.write(saying(number)) for number in (1, 2, 1, 3)), return_exceptions=True
        )
        assert [type(refusal) for refusal in refused] == [type(None), type(None), ReceiptStoreFailed, type(None)]
        assert said(tmp_path / "f.db") == [1, 2, 3]


async def test_one_that_is_broken_is_refused_alone(tmp_path: Path) -> None:
    """Not by SQLite: by what it does itself, after it has written something."""

    def broken(transaction: sqlite3.Connection) -> None:
        saying(9)(transaction)
        raise KeyError("no such member")

    with opened(tmp_path / "f.db") as (file, _):
        commits = SharedCommits(file)
        writes = (saying(1), broken, saying(2))
        refused = await asyncio.gather(*(commits.write(write) for write in writes), return_exceptions=True)
        assert [type(refusal) for refusal in refused] == [type(None), ReceiptStoreFailed, type(None)]
        assert said(tmp_path / "f.db") == [1, 2]


async def test_one_whose_caller_has_gone_is_written_and_harms_nobody(tmp_path: Path) -> None:
    with opened(tmp_path / "f.db") as (file, _):
        commits = SharedCommits(file)
        gone, other = (asyncio.ensure_future(commits.write(saying(number))) for number in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        await other
        assert gone.cancelled()
        await commits.write(saying(3))
        assert said(tmp_path / "f.db") == [1, 2, 3]


async def test_a_file_that_is_closed_refuses_all(tmp_path: Path) -> None:
    with opened(tmp_path / "f.db") as (file, _):
        file.close()
        commits = SharedCommits(file)
        refused = await asyncio.gather(*(commits.write(saying(number)) for number in (1, 2)), return_exceptions=True)
        assert [type(refusal) for refusal in refused] == [ReceiptStoreFailed, ReceiptStoreFailed]


async def test_more_than_one_commit_takes_are_all_written_in_order(tmp_path: Path) -> None:
    with opened(tmp_path / "f.db") as (file, told):
        commits, order = SharedCommits(file), list[int]()

        def noting(number: int) -> Write:
            def write(transaction: sqlite3.Connection) -> None:
                order.append(number)
                saying(number)(transaction)

            return write

        await asyncio.gather(*(commits.write(noting(number)) for number in range(600)))
        assert order == said(tmp_path / "f.db") == list(range(600))
        assert told.count("COMMIT") == 3
