"""The witness as a process: C2SP's protocol over HTTPS, and a memory that outlives being killed."""

from __future__ import annotations

import asyncio
import gzip
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from libs.transparency import cosignature, note
from libs.transparency.add_checkpoint import ADD_CHECKPOINT, ADD_KEY, MAX_REQUEST_BYTES, SIZE_TYPE, newest_path
from tests.fakes.https_application import status_of, unreadable_requests
from tests.fakes.running_witness import RunningWitness

from .conftest import ORIGIN, OTHER_KEY, VKEY, GrowingLog


@pytest.fixture
async def witness(tmp_path: Path) -> AsyncIterator[RunningWitness]:
    made = RunningWitness(tmp_path / "w", [{"origin": ORIGIN, "verifier_keys": [VKEY.text()]}])
    async with made.running():
        yield made


class Client:
    def __init__(self, witness: RunningWitness, session: aiohttp.ClientSession) -> None:
        self._url, self._session = witness.url, session
        self._context = ssl.create_default_context(cafile=str(witness.ca))

    async def post(self, body: bytes, path: str = ADD_CHECKPOINT) -> tuple[int, bytes, str]:
        async with self._session.post(self._url + path, data=body, ssl=self._context) as response:
            return response.status, await response.read(), response.headers["Content-Type"]

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self._session.get(self._url + path, ssl=self._context) as response:
            return response.status, await response.read()


async def test_each_answer_is_the_protocols(witness: RunningWitness) -> None:
    log, rewritten = GrowingLog().grow(20), GrowingLog(salt=b"other").grow(20)
    async with aiohttp.ClientSession() as session:
        client = Client(witness, session)
        assert (await client.get(newest_path(ORIGIN)))[0] == 404
        first = log.request(0, 5)
        status, lines, _ = await client.post(first.encode())
        signed = cosignature.attach(first.note, note.parse_lines(lines))
        assert status == 200
        assert all(cosignature.verify_cosignature(signed, key) > 0 for key in witness.keys)
        assert await client.get(newest_path(ORIGIN)) == (200, signed)
        status, said, kind = await client.post(log.request(4, 9).encode())
        assert (status, said, kind) == (409, b"5\n", SIZE_TYPE)
        status, said, kind = await client.post(rewritten.request(5, 5).encode())
        assert (status, said.split(b":")[0], kind == SIZE_TYPE) == (409, b"SPLIT_VIEW", False)
        for body, expected in (
            (rewritten.request(5, 9).encode(), 422),
            (log.request(5, 9, OTHER_KEY).encode(), 403),
            (GrowingLog("other.example").grow(3).request(0, 3).encode(), 404),
            (b"old 5\n", 400),
            (b"x" * (MAX_REQUEST_BYTES + 1), 400),
        ):
            assert (await client.post(body))[0] == expected
        assert (await client.post(b"{}", ADD_KEY))[0] == 400
        assert (await client.get("/"))[0] == 404
        assert (await client.post(log.request(5, 9).encode()))[0] == 200


async def test_who_sends_slowly_keeps_no_other_log_from_being_cosigned(witness: RunningWitness) -> None:
    log, slow = GrowingLog().grow(5), []
    context = ssl.create_default_context(cafile=str(witness.ca))
    head = b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    for _ in range(4):
        reader, sender = await asyncio.open_connection("127.0.0.1", urlsplit(witness.url).port, ssl=context)
        sender.write(head + b"old")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")  # So it is being read.
        slow.append(sender)
    async with aiohttp.ClientSession() as same:
        assert (await Client(witness, same).post(log.request(0, 5).encode()))[:2] == (503, b"BUSY\n")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))) as another:
        assert (await Client(witness, another).post(log.request(0, 5).encode()))[0] == 200
    for sender in slow:
        sender.close()


async def test_what_nobody_should_send_is_refused_and_the_witness_serves_on(witness: RunningWitness) -> None:
    log = GrowingLog().grow(5)
    context = ssl.create_default_context(cafile=str(witness.ca))
    port = urlsplit(witness.url).port or 0
    for name, hostile in unreadable_requests(newest_path(ORIGIN)).items():
        assert await status_of(port, context, hostile.data) == hostile.refusal[0], name
    body = gzip.compress(log.request(0, 5).encode())
    head = f"POST {ADD_CHECKPOINT} HTTP/1.0\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    assert await status_of(port, context, head.encode() + body) == 400, "what came is judged, not what it unpacks to"
    async with aiohttp.ClientSession() as session:
        assert (await Client(witness, session).post(log.request(0, 5).encode()))[0] == 200


async def test_what_was_cosigned_outlives_a_kill(witness: RunningWitness) -> None:
    log = GrowingLog().grow(40)
    keys = witness.keys
    async with aiohttp.ClientSession() as session:
        for round_ in range(1):
            client = Client(witness, session)
            assert (await client.post(log.request(round_ * 5, round_ * 5 + 5).encode()))[0] == 200
            assert await witness.kill() == -signal.SIGKILL
            await witness.start()
            assert (await client.post(log.request(0, 40).encode()))[:2] == (409, f"{round_ * 5 + 5}\n".encode())
    assert witness.keys == keys
    assert await witness.kill(signal.SIGTERM) == 0
