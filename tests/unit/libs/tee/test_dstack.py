from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from libs.tee import tdx
from libs.tee.dstack import Guest, GuestRefused, GuestReplyMalformed, GuestUnavailable
from libs.tee.dstack_custody import CustodyNotProven, verify_chain
from libs.tee.secp256k1 import public_key_of
from services.devtee.guest import serving_guest
from services.devtee.methods import GuestMethods
from tests.unit.libs.tee.bench import COMPOSE, NOW, Bench

REPORT_DATA = bytes(range(64))


@asynccontextmanager
async def _guest(bench: Bench, folder: Path) -> AsyncIterator[Guest]:
    socket = folder / "guest.sock"
    async with serving_guest(socket, GuestMethods(bench.td, lambda: NOW)), Guest(socket) as guest:
        yield guest


@asynccontextmanager
async def _answering(folder: Path, answer: Any, status: int = 200, raw: bytes | None = None) -> AsyncIterator[Guest]:
    """An agent that answers everything alike."""

    async def call(_: web.Request) -> web.Response:
        return web.json_response(answer, status=status) if raw is None else web.Response(body=raw, status=status)

    application = web.Application()
    application.router.add_post("/{method}", call)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(folder / "guest.sock")).start()
        async with Guest(folder / "guest.sock") as guest:
            yield guest
    finally:
        await runner.cleanup()


async def test_quote_carries_report_data_and_a_log_that_replays(bench: Bench, tmp_path: Path) -> None:
    async with _guest(bench, tmp_path) as guest:
        answer = await guest.quote(REPORT_DATA)
    assert tdx.read_report(answer.quote).report_data == REPORT_DATA
    assert [event.to_json() for event in answer.event_log] == [event.to_json() for event in bench.event_log]
    assert answer.vm_config == bench.machine.image.vm_config


async def test_compose_is_the_measured_text(bench: Bench, tmp_path: Path) -> None:
    async with _guest(bench, tmp_path) as guest:
        assert await guest.measured_compose() == COMPOSE
        info = await guest.info()
    assert info.compose_hash == bench.measurement.compose_hash
    assert info.device_id == bench.machine.device_id.hex()


async def test_key_depends_on_its_path_alone(bench: Bench, tmp_path: Path) -> None:
    async with _guest(bench, tmp_path) as guest:
        first, again, other = [await guest.key(path) for path in ("a", "a", "b")]
    assert first == again != other
    assert first.secret != other.secret
    assert len(first.secret) == 32


async def test_a_key_comes_with_the_chain_of_its_path(bench: Bench, tmp_path: Path) -> None:
    async with _guest(bench, tmp_path) as guest:
        key, other = await guest.key("a"), await guest.key("b")
        app_id = await guest.app_id()
    root = public_key_of(bench.machine.kms.root)
    assert app_id == bench.td.identity.app_id
    verify_chain(key.claim, key.signature_chain, app_id=app_id, kms_root=root)
    with pytest.raises(CustodyNotProven):
        verify_chain(other.claim, key.signature_chain, app_id=app_id, kms_root=root)
    assert repr(key.secret) not in repr(key)


async def test_missing_socket_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(GuestUnavailable, match="is the guest agent running"):
        async with Guest(tmp_path / "none.sock"):
            pass


async def test_socket_that_nobody_serves_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "guest.sock").touch()
    async with Guest(tmp_path / "guest.sock") as guest:
        with pytest.raises(GuestUnavailable, match="does not answer"):
            await guest.info()


async def test_refusal_repeats_the_agents_words(tmp_path: Path) -> None:
    async with _answering(tmp_path, {"error": "no such\nkey"}, status=400) as guest:
        with pytest.raises(GuestRefused, match="no such key"):
            await guest.key("x")


async def test_refusal_without_words_names_the_status(tmp_path: Path) -> None:
    async with _answering(tmp_path, None, status=502, raw=b"<html>") as guest:
        with pytest.raises(GuestRefused, match="HTTP 502"):
            await guest.info()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"key": "00", "signature_chain": []},
        {"key": "zz", "signature_chain": []},
        {"key": "00" * 32, "signature_chain": []},
        {"key": "01" * 32, "signature_chain": ["zz"]},
        {"quote": "", "event_log": "{}"},
    ],
)
async def test_other_answers_are_malformed_and_not_repeated(tmp_path: Path, answer: Any) -> None:
    async with _answering(tmp_path, answer) as guest:
        with pytest.raises(GuestReplyMalformed, match="not understood") as refusal:
            await guest.key("x")
        assert refusal.value.__cause__ is None
        for ask in (guest.info, guest.app_id):
            with pytest.raises(GuestReplyMalformed):
                await ask()


async def test_quote_of_no_form_is_refused(tmp_path: Path) -> None:
    async with _answering(tmp_path, {"quote": "00", "event_log": "[]"}) as guest:
        with pytest.raises(tdx.QuoteMalformed):
            await guest.quote(REPORT_DATA)
    with pytest.raises(ValueError, match="64 bytes"):
        await Guest(tmp_path).quote(b"short")
