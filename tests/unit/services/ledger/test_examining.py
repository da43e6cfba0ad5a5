"""The examiner: vouches for what opens and says what it should, for the very bytes it was sent, for nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.events.batches import Batch, encode_batch, parse_batch
from libs.events.consume import StreamMessage
from libs.events.records import Entry, Record, seal
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.ledger.children import Child
from services.ledger.intake.examination import Request, VaultKeys, answer, parse_request
from services.ledger.intake.examining import ExaminerGone, ExaminerProcess, ExaminerWrong, open_examiner

from .writers import VAULT

ISSUER = b"\x11" * 32
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
OTHER = VaultKey(b"\x0a" * 16, VAULT.epoch, b"\x03" * 32, "cd" * 16)
KEYS = {(VAULT.vault_id, VAULT.epoch): VAULT}


def entry(number: int, **changes: Any) -> bytes:
    honest = Entry(Kind.RECEIPT, ISSUER, number, bytes(32), VAULT.tenant, {"n": number})
    return replace(honest, **changes).canonical()


def sealed(number: int, canonical: bytes | None = None, vault: VaultKey | None = VAULT) -> Record:
    kind = Kind.POLICY if vault is None else Kind.RECEIPT
    return seal(entry(number) if canonical is None else canonical, kind, ISSUER, number, bytes(32), vault)


def flipped(record: Record) -> Record:
    return Record(record.header, bytes([record.body[0] ^ 1]) + record.body[1:])


def message(*records: Record) -> tuple[StreamMessage, Batch]:
    data = encode_batch(ISSUER, 1, records, KEY)
    return StreamMessage(1, data, 0), parse_batch(data)


HONEST = message(sealed(1), sealed(2), sealed(3))


async def vouched(*records: Record, keys: VaultKeys = KEYS) -> frozenset[int]:
    async with asyncio.timeout(30), open_examiner() as examiner:
        (opens,) = await examiner.opening([message(*records)], keys)
    return opens


async def test_records_that_open_and_say_what_they_should_are_vouched_for() -> None:
    async with asyncio.timeout(30), open_examiner() as examiner:
        assert list(await examiner.opening([HONEST, message(sealed(1))], KEYS)) == [{1, 2, 3}, {1}]
        assert list(await examiner.opening([HONEST], {})) == [set()]


async def test_nothing_else_is_vouched_for() -> None:
    """Number 1 is honest, so that a refusal of all would be seen."""
    honest = sealed(1)
    attacks = [
        flipped(sealed(2)),
        replace(sealed(3), header=replace(sealed(3).header, commitment=bytes(32))),
        sealed(4, vault=OTHER),
        sealed(5, entry(1)),
        sealed(6, entry(6, issuer=b"\x12" * 32)),
        sealed(7, entry(7, kind=Kind.AMENDMENT)),
        sealed(8, entry(8, tenant=OTHER.tenant)),
        sealed(9, entry(9).replace(b":", b": ", 1)),
        sealed(10, b"{}"),
        sealed(11, entry(11, tenant=None, kind=Kind.POLICY), None),
        Record(honest.header, honest.body),
    ]
    assert await vouched(honest, *attacks) == {1}


async def test_the_key_of_another_vault_opens_nothing() -> None:
    renamed = replace(OTHER, vault_id=VAULT.vault_id)
    assert await vouched(sealed(1), keys={(VAULT.vault_id, VAULT.epoch): renamed}) == frozenset()


def test_a_request_comes_over_as_it_was_sent() -> None:
    keys = {**KEYS, (OTHER.vault_id, OTHER.epoch): OTHER}
    request = Request(7, keys, [HONEST[0].data, b"second"])
    data = request.encode()
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert parse_request(data[4:]) == request


@asynccontextmanager
async def saying(*answers: Mapping[str, Any]) -> AsyncIterator[ExaminerProcess]:
    """An examiner that says what a test has it say as soon as it is asked, whatever that is."""
    lines = b"".join(jcs.dumps(dict(each)) + b"\n" for each in answers)
    script = (
        "import sys; sys.stdin.buffer.read(1); "
        f"sys.stdout.buffer.write({lines!r}); sys.stdout.flush(); sys.stdin.buffer.read()"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            yield ExaminerProcess(Child(process, process.stdin, process.stdout))
    finally:
        process.kill()
        await process.communicate()


def answered(number: int, *messages: tuple[StreamMessage, Batch]) -> dict[str, Any]:
    return jcs.loads_object(answer(Request(number, KEYS, [each.data for each, _ in messages])))


OTHERS = message(sealed(1), sealed(2), flipped(sealed(3)))
WRONG = {
    "another message": answered(1, OTHERS),
    "fewer messages": answered(1),
    "more messages": answered(1, HONEST, HONEST),
    "fewer records": {"number": 1, "messages": [[HONEST[1].digest.hex(), "11"]]},
    "more records": {"number": 1, "messages": [[HONEST[1].digest.hex(), "1111"]]},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
async def test_an_answer_about_anything_else_is_refused(wrong: dict[str, Any]) -> None:
    async with saying(wrong) as examiner:
        with pytest.raises(ExaminerWrong):
            await examiner.opening([HONEST], KEYS)


async def test_an_answer_that_nobody_waits_for_any_more_is_not_taken_for_the_next() -> None:
    both = {"number": 1, "messages": [[HONEST[1].digest.hex(), "111"]]}
    async with saying(both, {**both, "number": 2, "messages": [[HONEST[1].digest.hex(), "100"]]}) as examiner:
        asked = asyncio.create_task(examiner.opening([HONEST], KEYS))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert list(await examiner.opening([HONEST], KEYS)) == [{1}]


async def test_asked_again_before_it_has_answered_it_answers_each_about_its_own() -> None:
    """More is asked at once than its pipe holds."""
    half_honest = message(*(sealed(number) if number % 2 else flipped(sealed(number)) for number in range(1, 257)))
    expected = frozenset(range(1, 257, 2))
    async with asyncio.timeout(30), open_examiner() as examiner:
        many, few, again = await asyncio.gather(
            examiner.opening([half_honest] * 8, KEYS), examiner.opening([HONEST], KEYS), examiner.opening([OTHERS], {})
        )
    assert list(many) == [expected] * 8
    assert list(few) == [{1, 2, 3}]
    assert list(again) == [set()]


async def test_an_examiner_that_was_killed_is_noticed() -> None:
    async with asyncio.timeout(30), open_examiner() as examiner:
        await examiner.opening([HONEST], KEYS)
        os.kill(examiner.pid, signal.SIGKILL)
        with pytest.raises(ExaminerGone):
            await examiner.opening([HONEST], KEYS)
        with pytest.raises(ExaminerGone):
            await examiner.watch()
