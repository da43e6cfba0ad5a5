"""Having the log witnessed: what counts, what does not, and what another history under a witness's signature does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.rpc.tls import load_server_context
from libs.transparency import checkpoint, cosignature, merkle
from libs.transparency.add_checkpoint import AddCheckpoint, AddKey
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.note import VerifierKey
from libs.transparency.tree import Tree
from services.ledger.checkpoints.auditing import SignedTree
from services.ledger.checkpoints.proofs import Consistency, ProofWithheld
from services.ledger.checkpoints.split_view import SplitView
from services.ledger.checkpoints.witnessed_floor import witnessed_floors
from services.ledger.checkpoints.witnesses import Witness, WitnessAway, open_witnesses
from services.ledger.checkpoints.witnessing import Asked, Witnessing
from services.ledger.config import WitnessSettings
from services.ledger.storage.damage import LogForked
from tests.fakes.pki import ThrowawayCa
from tests.fakes.served_witness import ServedWitness, served_witness

ORIGIN = "mesh.local/ledger/1"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
VKEY = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())


class Log:
    """A log that is durable and signed as far as it says, and keeps what was witnessed."""

    def __init__(self, salt: bytes = b"") -> None:
        self._salt = salt
        self.tree = Tree()
        self.witnessed: list[SignedTree] = []
        self._news = asyncio.Event()
        self.kept: list[SplitView] = []

    def grow(self, size: int) -> Log:
        for number in range(self.tree.size, size):
            self.tree.append(merkle.leaf_hash(self._salt + number.to_bytes(8, "big")))
        return self

    @property
    def size(self) -> int:
        return self.tree.size

    def root(self, size: int) -> bytes:
        return self.tree.root(size)

    def consistency(self, first: int, second: int) -> Consistency:
        return Consistency(tuple(merkle.consistency_path(self.tree, first, second)), second)

    async def signed_beyond(self, size: int) -> SignedTree:
        while self.size <= size:
            await asyncio.Event().wait()
        note = checkpoint.sign(Checkpoint(ORIGIN, self.size, self.root(self.size)), KEY)
        return SignedTree(self.size, self.root(self.size), note)

    async def witness(self, tree: SignedTree) -> None:
        self.witnessed.append(tree)
        self._news.set()

    async def until_witnessed(self, size: int) -> None:
        while not self.witnessed or self.witnessed[-1].size < size:
            self._news.clear()
            await self._news.wait()

    async def keep(self, found: SplitView) -> None:
        self.kept.append(found)


def witnessing(
    log: Log, witnesses: Sequence[Witness], quorum: int, clock: Callable[[], float] = lambda: 0.0
) -> Witnessing:
    def attest(request: AddCheckpoint) -> AddKey:
        return AddKey(request, b"", b"", b"{}", (), ())

    return Witnessing(Asked(witnesses, quorum, 0.01), log, log, attest, log.keep, clock)  # type: ignore[arg-type]


@asynccontextmanager
async def mesh_of(folder: Path, count: int) -> AsyncIterator[tuple[list[ServedWitness], Sequence[Witness]]]:
    async with AsyncExitStack() as stack:
        served = [
            await stack.enter_async_context(served_witness(folder / str(number), [VKEY], f"witness.example/w{number}"))
            for number in range(count)
        ]
        yield served, await stack.enter_async_context(open_witnesses([each.settings for each in served]))


async def witnessed(log: Log, running: Witnessing) -> None:
    """Run the collecting until all of the log is witnessed."""
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(running.keep())
        await log.until_witnessed(log.size)
        keeping.cancel()


async def test_a_quorum_makes_a_tree_witnessed_and_later_ones_follow(tmp_path: Path) -> None:
    log = Log().grow(5)
    async with mesh_of(tmp_path, 3) as (served, witnesses):
        running = witnessing(log, witnesses, 2)
        await witnessed(log, running)
        log.grow(9)
        await witnessed(log, running)
        for tree in log.witnessed:
            cosigned = cosignature.verify_quorum(tree.note, [each.key for each in served], 3)
            assert len(cosigned) == 3
            assert checkpoint.verify(tree.note, VKEY).size == tree.size


async def test_one_witness_fewer_than_the_quorum_is_not_enough(tmp_path: Path) -> None:
    log, now = Log().grow(5), [0.0]
    async with mesh_of(tmp_path, 2) as (served, witnesses), open_witnesses([absent(served[0])]) as away:
        running = witnessing(log, [witnesses[0], *away], 2, lambda: now[0])
        assert not await running._witness(await log.signed_beyond(0))
        assert log.witnessed == []
        assert await witnessing(log, [*witnesses, *away], 2)._witness(await log.signed_beyond(0))


def absent(served: ServedWitness) -> WitnessSettings:
    """A witness of another name where nobody listens."""
    key = cosignature.cosigner_key("absent.example", Ed25519PrivateKey.generate())
    return replace(served.settings, url="https://127.0.0.1:9", verifier_key=key.text())


async def test_a_witness_that_saw_another_history_ends_the_ledger_and_both_notes_are_kept(tmp_path: Path) -> None:
    honest, rewritten = Log().grow(9), Log(b"other").grow(12)
    async with mesh_of(tmp_path, 1) as (served, witnesses):
        await witnessed(honest, witnessing(honest, witnesses, 1))
        for size in (12, 14):
            with pytest.raises(ExceptionGroup) as ended:
                await witnessing(rewritten.grow(size), witnesses, 1).keep()
            assert ended.group_contains(LogForked)
        assert (LogForked.exit_status, rewritten.witnessed) == (6, [])
        kept = rewritten.kept[0]
        assert checkpoint.verify(kept.ours, VKEY).size == 12
        assert checkpoint.verify(kept.theirs, VKEY).size == 9
        assert cosignature.verify_quorum(kept.theirs, [served[0].key], 1)
        assert json.loads(kept.document())["theirs"] == kept.theirs.decode()


async def test_a_log_that_was_put_back_is_another_history(tmp_path: Path) -> None:
    log, back = Log().grow(9), Log().grow(6)
    async with mesh_of(tmp_path, 1) as (_, witnesses):
        await witnessed(log, witnessing(log, witnesses, 1))
        with pytest.raises(ExceptionGroup) as ended:
            await witnessing(back, witnesses, 1).keep()
        assert ended.group_contains(LogForked)


class LyingWitness:
    """Answers as it likes; its certificate is good."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        authority = ThrowawayCa()
        key, certificate = authority.leaf(None, "localhost", ip="127.0.0.1")
        self._context = load_server_context(key_pem=key, certificate_pem=certificate)
        self._ca = folder / "ca.pem"
        self._ca.write_bytes(authority.pem)
        self.key = Ed25519PrivateKey.generate()
        self.answer = web.Response(status=200)
        self.shown: bytes | None = None
        self.requests = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Sequence[Witness]]:
        served = web.Application()
        served.router.add_post("/{path}", self._post)
        served.router.add_get("/{log}/checkpoint", self._get)
        runner = web.AppRunner(served)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context).start()
        key = cosignature.cosigner_key("liar.example", self.key).text()
        settings = WitnessSettings(f"https://127.0.0.1:{runner.addresses[0][1]}", key, self._ca)
        async with open_witnesses([settings]) as witnesses:
            yield witnesses
        await runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        self.requests += 1
        return web.Response(status=self.answer.status, body=self.answer.body, headers=self.answer.headers)

    async def _get(self, request: web.Request) -> web.Response:
        return web.Response(status=404) if self.shown is None else web.Response(body=self.shown)

    def cosigned(self, tree: Checkpoint, by: Ed25519PrivateKey) -> bytes:
        line = cosignature.cosign(tree, "liar.example", by, 1)
        return cosignature.attach(checkpoint.sign(tree, KEY), [line])


async def test_claims_without_a_signed_history_end_nothing(tmp_path: Path) -> None:
    """A witness alone cannot stop a ledger by saying so."""
    log, liar = Log().grow(9), LyingWitness(tmp_path / "w")
    tree = await log.signed_beyond(0)
    stranger = Ed25519PrivateKey.generate()
    other = Checkpoint(ORIGIN, 9, bytes(32))
    async with liar.serving() as witnesses:
        running = witnessing(log, witnesses, 1)
        for answer in (
            web.Response(status=422),
            web.Response(status=409, text="9\n"),
            web.Response(status=409, text="99\n", content_type="text/x.tlog.size", charset=None),
            web.Response(status=409, body=b"99\n", headers={"Content-Type": "text/x.tlog.size"}),
        ):
            liar.answer = answer
            for shown in (
                None,
                b"nothing",
                liar.cosigned(other, stranger),
                liar.cosigned(Checkpoint("other.example", 9, bytes(32)), liar.key),
                liar.cosigned(Checkpoint(ORIGIN, 4, log.root(4)), liar.key),
            ):
                liar.shown = shown
                assert not await running._witness(tree)
        assert log.kept == []
        liar.shown = liar.cosigned(other, liar.key)
        with pytest.raises(ExceptionGroup) as ended:
            await running._witness(tree)
        assert ended.group_contains(LogForked)


async def test_what_cannot_be_compared_is_no_other_history(tmp_path: Path) -> None:
    """A bit that flipped in what is derived of the log must not look as if a witness had caught it."""

    class Damaged(Log):
        def root(self, size: int) -> bytes:
            raise ProofWithheld("the tree contradicts its root")

    log, liar = Log().grow(9), LyingWitness(tmp_path / "w")
    tree = await log.signed_beyond(0)
    liar.answer = web.Response(status=422)
    liar.shown = liar.cosigned(Checkpoint(ORIGIN, 4, log.root(4)), liar.key)
    async with liar.serving() as witnesses:
        assert not await witnessing(Damaged().grow(9), witnesses, 1)._witness(tree)


async def test_what_is_no_cosignature_of_this_tree_does_not_count(tmp_path: Path) -> None:
    log, liar = Log().grow(9), LyingWitness(tmp_path / "w")
    tree = await log.signed_beyond(0)
    ours, older = Checkpoint(ORIGIN, 9, log.root(9)), Checkpoint(ORIGIN, 8, log.root(8))
    stranger = Ed25519PrivateKey.generate()
    async with liar.serving() as witnesses:
        running = witnessing(log, witnesses, 1)
        for body in (
            b"",
            b"x" * (1 << 18),
            cosignature.cosign(older, "liar.example", liar.key, 1).line().encode(),
            cosignature.cosign(ours, "liar.example", stranger, 1).line().encode(),
            cosignature.cosign(ours, "other.example", liar.key, 1).line().encode(),
        ):
            liar.answer = web.Response(body=body)
            assert not await running._witness(tree)
        assert log.witnessed == []
        liar.answer = web.Response(body=cosignature.cosign(ours, "liar.example", liar.key, 1).line().encode())
        assert await running._witness(tree)


async def test_a_wrong_line_is_in_no_note_that_others_made_witnessed(tmp_path: Path) -> None:
    """Readers refuse a note with a wrong line by a key that they know, whoever else has signed it."""
    log, liar = Log().grow(9), LyingWitness(tmp_path / "liar")
    wrong = cosignature.cosign(Checkpoint(ORIGIN, 8, log.root(8)), "liar.example", liar.key, 1)
    liar.answer = web.Response(body=wrong.line().encode())
    async with liar.serving() as lying, mesh_of(tmp_path, 1) as (_, witnesses):
        assert await witnessing(log, [*witnesses, *lying], 1)._witness(await log.signed_beyond(0))
    assert b"liar.example" not in log.witnessed[0].note


async def test_a_stale_size_is_tried_again_once(tmp_path: Path) -> None:
    log, liar = Log().grow(9), LyingWitness(tmp_path / "w")
    liar.answer = web.Response(status=409, body=b"3\n", headers={"Content-Type": "text/x.tlog.size"})
    async with liar.serving() as witnesses:
        assert not await witnessing(log, witnesses, 1)._witness(await log.signed_beyond(0))
    assert liar.requests == 2


async def test_a_certificate_of_others_is_not_spoken_to(tmp_path: Path) -> None:
    async with served_witness(tmp_path / "one", [VKEY]) as one, served_witness(tmp_path / "two", [VKEY]) as two:
        settings = replace(one.settings, ca=two.settings.ca)
        async with open_witnesses([settings]) as (witness,):
            with pytest.raises(WitnessAway):
                await witness.newest(ORIGIN)


async def test_a_lag_is_told_once_a_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    running = witnessing(Log(), [], 0, lambda: now[0])
    told = 0
    for at, behind in ((0, True), (59, True), (61, True), (62, True), (122, True), (130, False), (131, True)):
        now[0] = float(at)
        running._watch_lag(behind)
        told += capsys.readouterr().out.count("nothing was witnessed for a while")
    assert told == 2


async def test_the_floor_is_what_any_quorum_must_have_seen(tmp_path: Path) -> None:
    log, verified = Log().grow(9), 0

    async def verify() -> None:
        nonlocal verified
        verified += 1

    async with mesh_of(tmp_path, 2) as (served, witnesses), open_witnesses([absent(served[0])]) as away:
        await witnessed(log, witnessing(log, witnesses, 1))
        # Two of three must have cosigned what was witnessed: one of any two that answer knows it.
        floors = await witnessed_floors([*witnesses, *away], 2, ORIGIN, verify)
        assert {(floor.size, floor.root) for floor in floors} == {(9, log.root(9))}
        assert await witnessed_floors([], 0, ORIGIN, verify) == []
        assert await witnessed_floors(witnesses, 2, "other.example", verify) == []
        assert verified == 0
        # One of three would do for a quorum of one, and may be the one that is away: nothing is begun.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await witnessed_floors([*witnesses, *away], 1, ORIGIN, verify)
        # The log itself was looked at before anybody was waited for.
        assert verified == 1
