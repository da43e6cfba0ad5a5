"""A running ledger's files, read by code that is not the ledger's, while it writes and after it was killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from libs.audit.log.notes import Key
from libs.identity.certificate import pem_of
from libs.transparency.leaf import Kind
from services.cli.__main__ import main
from tests.fakes.joined_mesh import JoinedMesh

from .live import LiveMesh, Router

ORIGIN = "mesh.test/ledger/1"
PATIENCE_SECONDS = 60.0
SOUND, TORN, UNPROVEN = 0, 2, 5


async def commit(router: Router, body: dict[str, int]) -> int:
    """Have an entry acknowledged and return its number."""
    committed = await router.publisher.commit(Kind.SESSION, body, vault=None, timeout=PATIENCE_SECONDS)
    router.publisher.released(committed)
    return committed.issuer_seq


def running_key(router: Router) -> str:
    """The checkpoint key that the ledger's evidence names: heads are signed before its keyset is in the log."""
    claims = router.ledger.lease.appraisal.workload_claims
    return Key(ORIGIN, bytes.fromhex(claims["checkpoint_key"])).text()


async def test_what_a_ledger_writes_is_sound_by_the_other_reading_and_by_policy(
    mesh: JoinedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, ca = tmp_path / "policy.json", tmp_path / "mesh-ca.pem"
    async with LiveMesh(mesh).running() as live:
        policy.write_bytes(mesh.seed)
        ca.write_bytes(pem_of(live.kms.ca.certificate))
        files = ["ledger", "verify", str(live.data_dir)]
        judged = [*files, "--policy", str(policy), "--mesh-ca", str(ca)]
        await live.start()
        async with live.router() as router:
            await commit(router, {"first": 0})
            # An acknowledgement does not wait for a signed head; once there is one, there always is.
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await asyncio.to_thread(main, [*files, "--key", running_key(router)]) == UNPROVEN:
                    pass
            for number in range(5):
                await commit(router, {"number": number})
                assert await asyncio.to_thread(main, [*files, "--key", running_key(router)]) in {SOUND, TORN}
            await live.kill()
            await live.start()
            assert await commit(router, {}) == 8
            # Until policy and the restarted ledger's keyset are in the log, nothing there bears out what it signs.
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (status := await asyncio.to_thread(main, judged)) != SOUND:
                    assert status in {TORN, UNPROVEN}
        await live.kill()
    capsys.readouterr()
    assert main(judged) == SOUND
    assert "writers admitted again by policy; versions in the log: 1" in capsys.readouterr().out
