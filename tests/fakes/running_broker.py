"""A broker wired as in production, around a real nats-server; it has just heard the KMS, again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.identity.freshness import PolicyKeeper
from libs.identity.member import Member
from services.broker.running import running
from services.broker.supervision import Broker, NatsSettings
from tests.fakes.joined_mesh import JoinedMesh, KmsCore, hear

_STATEMENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RunningBroker:
    member: Member
    nats: Broker
    target: str
    """Of the mesh listener."""

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.nats.port}"

    @property
    def settings(self) -> dict[str, str]:
        """What the table [events] of those who use it says."""
        return {"nats_url": self.url, "broker": self.target}


@asynccontextmanager
async def running_broker(
    mesh: JoinedMesh,
    kms: KmsCore,
    *,
    listen: str = "127.0.0.1:0",
    nats_port: int = -1,
    keeper: PolicyKeeper | None = None,
) -> AsyncIterator[RunningBroker]:
    async with (
        mesh.member("broker", kms, listen=listen, keeper=keeper) as member,
        running(member, NatsSettings(port=nats_port)) as broker,
        asyncio.TaskGroup() as tasks,
    ):
        hearing = tasks.create_task(_hear(member.policy))
        await broker.nats.until_ready()
        try:
            yield RunningBroker(member, broker.nats, f"127.0.0.1:{broker.serving.port}")
        finally:
            hearing.cancel()


async def _hear(policy: PolicyKeeper) -> None:
    while True:
        await asyncio.sleep(_STATEMENT_SECONDS)
        hear(policy, time.time())
