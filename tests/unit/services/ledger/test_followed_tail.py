"""`teemesh ledger tail --follow` over a log of three processes whose writer, and then everybody, is killed."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console

from libs.identity.certificate import Subject, key_pem, pem_of
from libs.transparency.leaf import Kind
from services.cli.ledger.command import LedgerAccess, Tail
from services.cli.mesh.service_access import ServiceAccess
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh

from .live import Router
from .live_group import LiveGroup

PATIENCE_SECONDS = 60.0
ENTRIES = 4


class Followed:
    """What the command has printed so far."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self.console = Console(file=self._text)

    @property
    def indices(self) -> list[int]:
        lines = map(json.loads, self._text.getvalue().splitlines())
        return [line["index"] for line in lines if "index" in line]

    async def until(self, index: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while index not in self.indices:  # noqa: ASYNC110 - the command tells nobody but its reader.
                await asyncio.sleep(0.05)


def access_of(group: LiveGroup, first: str, state: Path) -> LedgerAccess:
    """An operator's way to the members, to `first` before the others."""
    key = ec.generate_private_key(ec.SECP256R1())
    der = group.kms.ca.issue_svid(Subject(TRUST_DOMAIN, "operator", "ada", None), key.public_key(), time.time())
    targets = [group.targets[first], *(group.targets[name] for name in group.names if name != first)]
    one, *others = (
        ServiceAccess("ledger", target, TRUST_DOMAIN, group.member.ca_pem, pem_of(der), key_pem(key))
        for target in targets
    )
    return LedgerAccess(one, state / "ledger-tail.json", tuple(others))


@asynccontextmanager
async def following(access: LedgerAccess) -> AsyncIterator[Followed]:
    followed = Followed()
    tail = Tail(access, followed.console, from_index=None, as_json=True, retry_seconds=0.05)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(tail.read(follow=True))
        yield followed
        reading.cancel()


async def commit(router: Router) -> int:
    """Have some entries acknowledged and return the last one's index."""
    for number in range(ENTRIES):
        committed = await router.publisher.commit(Kind.SESSION, {"n": number}, vault=None, timeout=PATIENCE_SECONDS)
        router.publisher.released(committed)
    return int.from_bytes(committed.acknowledgement.statement[8:16], "big")


async def test_following_misses_and_repeats_nothing_over_a_takeover_and_a_restart(
    mesh: JoinedMesh, tmp_path: Path
) -> None:
    async with LiveGroup(mesh).running() as group:
        assert isinstance(group, LiveGroup)
        await group.start_all()
        writer = await group.writer(group.member)
        async with group.router() as router, following(access_of(group, writer, tmp_path)) as followed:
            await followed.until(await commit(router))
            # The member that is read is the one that dies.
            await group.kill_member(writer)
            await followed.until(await commit(router))
            for name in group.names:
                await group.processes[name].kill()
            await group.start_all()
            last = await commit(router)
            await followed.until(last)
            assert followed.indices[: last + 1] == list(range(last + 1))
