"""10: nats-server's store damaged, put back, or gone. 11: what was delivered comes again, and consumers are removed.
12: old messages come again. 14: messages are gone.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from libs.events.batches import parse_batch
from libs.events.consume import read_message
from libs.events.subjects import issuer_subject, stream_name
from libs.transparency.leaf import Kind
from services.ledger.storage.derived import FOLDER as DERIVED
from tests.faults.ledger.ground import PATIENCE_SECONDS, Ground
from tests.faults.ledger.outcome import Batch, Outcome

_STREAM = stream_name(1)
_CALL_SECONDS = 5.0
_WAITING = 6
"""Entries that nobody has acknowledged when something happens to the stream."""
_STORM = 1.0
_LOOK_SECONDS = 0.05
_ROLLED_BACK = "the stream was rolled back or replaced"


async def stores(ground: Ground, batch: Batch) -> Outcome:
    """Meddle with the store while nats-server is down: an old one, none, or one with a byte changed."""
    outcome = Outcome()
    for number in batch.rounds:
        chance = batch.chance(number)
        before, noticed = await ground.count(Kind.GAP), _said(ground).count(_ROLLED_BACK)
        match number % 3:
            case 0:
                await _put_back(ground)
                outcome.counts["old stores put back"] += 1
            case 1:
                await _damage(ground, chance)
                outcome.counts["stores damaged"] += 1
            case _:
                await _lose(ground)
                outcome.counts["stores lost"] += 1
        if number % 3 == 1:
            outcome.require(await ground.is_said(Kind.GAP, before), f"round {number}: what is missing is not said")
        else:
            said = _said(ground).count(_ROLLED_BACK)
            outcome.require(said > noticed, f"round {number}: nobody noticed that the stream is another")
    return outcome


async def redelivered(ground: Ground, batch: Batch) -> Outcome:
    """Have everything that is under way delivered again, over and over, or take the consumer away.

    What writers see acknowledged in a storm is counted beside what they see in as much time without; of a removal, how
    long the next entry takes.
    """
    outcome, live = Outcome(), ground.live
    loop = asyncio.get_running_loop()
    async with _as_ledger(ground) as client, ground.busy():
        stream = client.jetstream(timeout=_CALL_SECONDS)
        for number in batch.rounds:
            consumer = await _consumer(live.store)
            if number % 2:
                began = loop.time()
                await stream.delete_consumer(_STREAM, consumer)
                await ground.commit()
                outcome.counts["consumers removed"] += 1
                outcome.counts["ms until the next entry was acknowledged"] += int((loop.time() - began) * 1000)
                continue
            async with _counting(ground, outcome, "acknowledged in quiet times"):
                pass
            async with _counting(ground, outcome, "acknowledged in as much time of storms") as ending:
                outcome.counts["messages asked for again"] += await _ask_again(client, consumer, ending)
            await ground.commit()
    return outcome


async def old_messages(ground: Ground, batch: Batch) -> Outcome:
    """Send everything again: to the same stream without its memory, and to a new one, the index gone too."""
    outcome, live = Outcome(), ground.live
    for number in batch.rounds:
        await ground.commit()
        async with _as_ledger(ground) as client:
            last = (await client.jetstream().stream_info(_STREAM)).state.last_seq
            old = [data async for data in _messages(ground, last)]
        before = await ground.count(Kind.RECEIPT)
        await live.kill()
        shutil.rmtree(live.data_dir / DERIVED)
        if number % 2:
            await live.stop_broker()
            shutil.rmtree(live.store)
            await live.start_broker()
        await live.start()
        await ground.commit()
        async with ground.stream(ground.router.member) as link:
            client = await link.client(PATIENCE_SECONDS)
            for data in old:
                await client.publish(issuer_subject(1, parse_batch(data).issuer), data)
            await client.flush()
        # Whatever is acknowledged now came after all of them.
        await ground.commit()
        new = await ground.count(Kind.RECEIPT) - before
        outcome.require(new == 2, f"round {number}: {new} receipts are new, of two that are")
        outcome.counts["old messages sent again"] += len(old)
    return outcome


async def holes(ground: Ground, batch: Batch) -> Outcome:
    """Remove messages that the ledger has not read, from the beginning or from between others."""
    outcome, live = Outcome(), ground.live
    for number in batch.rounds:
        await ground.commit()
        before = await ground.count(Kind.GAP)
        await live.kill()
        async with _waiting(ground), _as_ledger(ground) as client:
            stream = client.jetstream(timeout=_CALL_SECONDS)
            info = await stream.stream_info(_STREAM)
            subject = issuer_subject(1, ground.router.publisher.issuer) if number % 2 else None
            await stream.purge_stream(_STREAM, seq=info.state.last_seq, subject=subject)
            # nats-server remembers for minutes whose messages it took, and forgets those it has no more when it starts.
            await live.kill_broker()
            await live.start()
        outcome.require(await ground.is_said(Kind.GAP, before), f"round {number}: what is missing is not said")
        outcome.counts["holes in the middle" if number % 2 else "holes at the beginning"] += 1
    return outcome


async def _put_back(ground: Ground) -> None:
    """An older store: nats-server gives numbers to others that the log has read already."""
    live = ground.live
    old = live.mesh.folder / "old-store"
    await live.stop_broker()
    await asyncio.to_thread(shutil.copytree, live.store, old)
    await live.start_broker()
    for _ in range(3):
        await ground.commit()
    await live.stop_broker()
    shutil.rmtree(live.store)
    old.rename(live.store)
    await live.start_broker()
    for _ in range(5):
        await ground.commit()


async def _lose(ground: Ground) -> None:
    """No store: the ledger that runs makes the stream."""
    live = ground.live
    await live.stop_broker()
    shutil.rmtree(live.store)
    await live.start_broker()
    await ground.commit()


async def _damage(ground: Ground, chance: random.Random) -> None:
    """Change a byte of a message that the ledger has not read. With its index nats-server passes over it in silence."""
    live = ground.live
    await live.kill()
    read = len(_messages_in(_newest_block(live.store).read_bytes()))
    async with _waiting(ground):
        await live.stop_broker()
        block = _newest_block(live.store)
        data = bytearray(block.read_bytes())
        # Not the newest: that one nats-server cuts off when it starts, as if it had never come, and it comes again.
        at = chance.choice(_messages_in(bytes(data))[read:-1])
        data[at + 60] ^= 1
        block.write_bytes(data)
        await live.start_broker()
        await live.start()


@asynccontextmanager
async def _waiting(ground: Ground) -> AsyncIterator[None]:
    """Publish while no ledger reads; whatever happens meanwhile, all of it is acknowledged in the end."""
    async with asyncio.TaskGroup() as tasks, _as_ledger(ground) as client:
        stream = client.jetstream(timeout=_CALL_SECONDS)
        last = (await stream.stream_info(_STREAM)).state.last_seq
        for number in range(_WAITING):
            tasks.create_task(ground.commit())
            await ground.live.decisions.record_later({"decision": "refused", "reason": f"a fault's, {number}"})
            last = await _beyond(stream, last)
        yield


async def _beyond(stream: JetStreamContext, last: int) -> int:
    """Wait until nats-server has more than that."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            newest = (await stream.stream_info(_STREAM)).state.last_seq
            if newest > last:
                return newest


@asynccontextmanager
async def _counting(ground: Ground, outcome: Outcome, what: str) -> AsyncIterator[float]:
    """Count what writers see acknowledged for as long as a storm lasts, whatever happens. Yields when that is over."""
    loop, before = asyncio.get_running_loop(), len(ground.seen.committed)
    ending = loop.time() + _STORM
    yield ending
    await asyncio.sleep(ending - loop.time())
    outcome.counts[what] += len(ground.seen.committed) - before


async def _ask_again(client: Client, consumer: str, ending: float) -> int:
    """Say of everything that the ledger has not acknowledged that it did not arrive, until then."""
    asked, stream = 0, client.jetstream(timeout=_CALL_SECONDS)
    while asyncio.get_running_loop().time() < ending:
        try:
            found = await stream.consumer_info(_STREAM, consumer)
        except NotFoundError:
            break
        if found.delivered is None or found.ack_floor is None:
            break
        for back in range(found.delivered.consumer_seq - found.ack_floor.consumer_seq):
            at, of = found.delivered.stream_seq - back, found.delivered.consumer_seq - back
            await client.publish(f"$JS.ACK.{_STREAM}.{consumer}.1.{at}.{of}.0.0", b"-NAK")
            asked += 1
        await client.flush()
    return asked


@asynccontextmanager
async def _as_ledger(ground: Ground) -> AsyncIterator[Client]:
    """A client of nats-server with what the ledger's role may do there."""
    live = ground.live
    async with live.mesh.member("ledger", live.kms, instance="9") as member, ground.stream(member) as link:
        yield await link.client(PATIENCE_SECONDS)


async def _messages(ground: Ground, last: int) -> AsyncIterator[bytes]:
    """Every message that the stream still has."""
    live = ground.live
    async with live.mesh.member("ledger", live.kms, instance="8") as member, ground.stream(member) as link:
        for sequence in range(1, last + 1):
            message = await read_message(link, 1, sequence, _CALL_SECONDS)
            if message is not None:
                yield message.data


async def _consumer(store: Path) -> str:
    """The stream's newest consumer. One that was taken away the ledger makes anew."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            newest = await asyncio.to_thread(_newest_consumer, store)
            if newest is not None:
                return newest
            await asyncio.sleep(_LOOK_SECONDS)


def _newest_consumer(store: Path) -> str | None:
    """By what nats-server keeps of each; one may go while it is looked at."""
    with suppress(FileNotFoundError):
        found = [(state.stat().st_mtime_ns, state.parent.name) for state in store.rglob("obs/*/meta.inf")]
        return max(found)[1] if found else None
    return None


def _newest_block(store: Path) -> Path:
    return max(store.rglob("*.blk"), key=lambda path: int(path.stem))


def _messages_in(block: bytes) -> list[int]:
    """Where the entries' messages begin in one of nats-server's files."""
    places, at = [], block.find(b"TMB1")
    while at >= 0:
        places.append(at)
        at = block.find(b"TMB1", at + 1)
    return places


def _said(ground: Ground) -> str:
    return (ground.live.mesh.folder / "ledger.log").read_text()
