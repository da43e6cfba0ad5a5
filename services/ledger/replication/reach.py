"""It is responsible for whether this member reaches what a writer needs: the witnesses, the KMS and the broker.

Each is asked something, with a deadline: that a connection stands says nothing of whoever is at its other end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import structlog
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import MeshError
from libs.events.connect import NatsLink
from libs.events.consume import read_message
from libs.rpc.deadline import outgoing_timeout
from libs.rpc.errors import remote_errors
from services.ledger.checkpoints.witnessed_floor import enough_answer
from services.ledger.checkpoints.witnessing import Asked
from services.ledger.keys import KmsChannel
from services.ledger.replication.exchange import Reached

_KMS_SECONDS = 2.0
_BROKER_SECONDS = 1.0
_NO_SEQUENCE = 2**63 - 1
"""A stream never comes to have so many messages: that it has none of this number is a short answer."""

log = structlog.get_logger()


class Reach:
    """What is around one member."""

    def __init__(self, asked: Asked, origin: str, kms: KmsChannel, link: NatsLink, log_number: int) -> None:
        """`link` is kept open by the caller."""
        self._asked = asked
        self._origin = origin
        self._kms = kms
        self._link = link
        self._log_number = log_number

    async def look(self) -> Reached:
        """Ask all of them, now."""
        witnesses = enough_answer(self._asked.witnesses, self._asked.quorum, self._origin)
        kms, broker = _answers("kms", self._ask_kms()), _answers("broker", self._ask_broker())
        return Reached(*await asyncio.gather(witnesses, kms, broker))

    async def _ask_kms(self) -> None:
        stub = kms_pb2_grpc.KmsServiceStub(await self._kms.channel(outgoing_timeout(_KMS_SECONDS)))
        with remote_errors():
            await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=outgoing_timeout(_KMS_SECONDS))

    async def _ask_broker(self) -> None:
        await read_message(self._link, self._log_number, _NO_SEQUENCE, _BROKER_SECONDS)


async def _answers(who: str, asking: Awaitable[None]) -> bool:
    try:
        await asking
    except MeshError as error:
        log.info("not reached", who=who, reason=error.reason, detail=str(error))
        return False
    return True
