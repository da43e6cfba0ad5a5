"""A ledger that a damaged file keeps down runs again after an order, and its log says once what was set aside."""

from __future__ import annotations

from hashlib import sha256

from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs import jcs
from libs.events.records import SALT_SIZE
from libs.transparency.leaf import Kind
from services.ledger.intake.faults import quarantined
from services.ledger.intake.owed import NAME, Owed
from services.ledger.intake.rejections import Reason, Refusal
from services.ledger.set_aside import set_aside
from tests.fakes.joined_mesh import JoinedMesh

from .live import LiveMesh
from .test_recovery import flip

PATIENCE_SECONDS = 60.0


async def test_the_log_says_that_evidence_was_set_aside_and_what_was_still_owed(mesh: JoinedMesh) -> None:
    async with LiveMesh(mesh).running() as live, live.router() as router:
        await live.start()
        await live.kill()
        owed = Owed(live.data_dir)
        for number in range(1, 4):
            owed.add([quarantined(Refusal(1, Reason.KIND_NOT_ALLOWED, "", b"", b"\x0a" * 32, number))])
        owed.close()
        flip(live.data_dir / NAME, 20)
        damaged = (live.data_dir / NAME).read_bytes()
        await live.start(ready=False)
        code, said = await live.process.ended()
        assert (code, "LOG_DAMAGED" in said, NAME in said) == (3, True, True)
        assert set_aside(live.data_dir, NAME) is not None
        await live.start()
        stub = ledger_pb2_grpc.LedgerServiceStub(await router.ledger.channel(PATIENCE_SECONDS))
        request = ledger_pb2.TailRequest(from_index=0, follow=True, kinds=(Kind.GAP, Kind.QUARANTINE))
        bodies = []
        async for response in stub.Tail(request, timeout=PATIENCE_SECONDS):
            bodies += [jcs.loads_object(entry.body[SALT_SIZE:])["body"] for entry in response.entries]
            if len(bodies) == 3:
                break
        *numbers, aside = sorted(bodies, key=lambda body: body.get("issuer_seq", 9))
        assert [body["issuer_seq"] for body in numbers] == [2, 3]
        assert aside == {
            "file": NAME,
            "size": len(damaged),
            "sha256": sha256(damaged).hexdigest(),
            "damaged_at": 0,
            "records_kept": 2,
        }
