"""A hostile issuer makes the ledger say more than its outbox holds: all it says of others' faults is logged."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs import jcs
from libs.events.connect import connect_nats
from libs.events.records import MAX_BODY_BYTES, SALT_SIZE
from libs.events.subjects import inbox_prefix, stream_name
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh

from .live import LiveMesh, Place, Router, Surroundings
from .vault_attack import rows_in

PATIENCE_SECONDS = 60.0
FAULTS = (Kind.GAP, Kind.CONFLICT, Kind.QUARANTINE)
FLOOD = 600
OUTBOX_BYTES = MAX_BODY_BYTES * 3 // 2
"""Room for a third of what is said of the flood."""


class FewWords(LiveMesh):
    """A mesh whose ledger has a small outbox."""

    def config(self, place: Place, surroundings: Surroundings) -> dict[str, Any]:
        config = super().config(place, surroundings)
        return {**config, "events": {**config["events"], "outbox_max_bytes": OUTBOX_BYTES}}


async def withhold_and_flood(live: LiveMesh, router: Router) -> int:
    """Have the stream lose a message that the ledger has not read, whose number is returned; what follows it are
    entries that their issuer may not write.
    """
    async with (
        live.mesh.member("ledger", live.kms, instance="9") as member,
        connect_nats(
            live.broker.url,
            member.broker(live.broker.target),
            server_name=f"broker.{TRUST_DOMAIN}",
            name="ledger/attack",
            inbox_prefix=inbox_prefix("ledger"),
        ) as link,
        asyncio.timeout(PATIENCE_SECONDS),
    ):
        stream = await link.jetstream(PATIENCE_SECONDS)

        async def last() -> int:
            return (await stream.stream_info(stream_name(1))).state.last_seq

        before = await last()
        await live.decisions.record_later({"decision": "refused", "reason": "withheld"})
        while (withheld := await last()) == before:
            pass
        await asyncio.gather(
            *(router.publisher.enqueue(Kind.POLICY, {"n": number}, vault=None) for number in range(FLOOD))
        )
        while await last() < withheld + FLOOD // 64:
            pass
        await stream.purge_stream(stream_name(1), seq=withheld + 1)
        return withheld


async def until_said(router: Router, count: int) -> None:
    """Follow the log until it has so many entries about faults."""
    stub = ledger_pb2_grpc.LedgerServiceStub(await router.ledger.channel(PATIENCE_SECONDS))
    request = ledger_pb2.TailRequest(from_index=0, follow=True, kinds=FAULTS)
    async for response in stub.Tail(request, timeout=PATIENCE_SECONDS):
        count -= len(response.entries)
        if count <= 0:
            return


async def test_whoever_floods_the_ledger_keeps_no_fault_out_of_the_log(mesh: JoinedMesh) -> None:
    async with FewWords(mesh).running() as live, live.router() as router:
        await live.start()
        committed = await router.publisher.commit(Kind.SESSION, {"n": 1}, vault=None, timeout=PATIENCE_SECONDS)
        router.publisher.released(committed)
        await live.kill()
        withheld = await withhold_and_flood(live, router)
        await live.start()
        await until_said(router, FLOOD + 1)
        await live.kill()
    entries = [(leaf.parse(row.leaf_data).kind, row.body[SALT_SIZE:]) for _, row in rows_in(live.data_dir)]
    said = {kind: [jcs.loads_object(body)["body"] for each, body in entries if each is kind] for kind in FAULTS}
    numbers = Counter((body["issuer"], body["issuer_seq"]) for body in said[Kind.QUARANTINE])
    refused = range(committed.issuer_seq + 1, committed.issuer_seq + FLOOD + 1)
    assert numbers == Counter((router.publisher.issuer.hex(), number) for number in refused)
    [gap] = said[Kind.GAP]
    assert gap["from"] <= withheld == gap["to"]
