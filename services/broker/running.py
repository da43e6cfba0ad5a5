"""It is responsible for a broker's parts together: nats-server, the mesh listener, and who is let in on what lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.identity.member import Member
from libs.rpc.server import Serving
from services.broker.admission import Admission
from services.broker.configuration import permissions
from services.broker.credentials import MemberCredentials
from services.broker.servicer import BrokerServicer, broker_binding
from services.broker.supervision import Broker, NatsSettings, open_broker


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that is up."""

    nats: Broker
    serving: Serving


@asynccontextmanager
async def running(member: Member, settings: NatsSettings) -> AsyncIterator[Running]:
    """Run a broker while the body runs. Raises what `open_broker` raises."""
    name = f"broker-{member.instance}"
    async with open_broker(name, settings, MemberCredentials(member), member.settings.state_dir) as nats:
        admission = Admission(member.leases, member.policy, nats, permissions())
        async with (
            member.serve([broker_binding(BrokerServicer(admission))]) as serving,
            asyncio.TaskGroup() as tasks,
        ):
            keeping = tasks.create_task(admission.keep())
            try:
                yield Running(nats, serving)
            finally:
                keeping.cancel()
