"""Responsible for reading the log as it grows: one stream from an appraised ledger, given up when it falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from typing import Protocol

import grpc.aio
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.rpc.errors import remote_errors
from libs.transparency.leaf import Kind

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 25.0
"""The ledger sends a heartbeat every 10 s; this long without a message means that the stream is dead."""


class LedgerChannels(Protocol):
    """The ledger as an appraised peer."""

    async def channel(self, timeout: float) -> grpc.aio.Channel: ...


async def tail(
    ledger: LedgerChannels, token: bytes, kinds: Collection[Kind], *, follow: bool, max_batch: int = 0
) -> AsyncGenerator[ledger_pb2.TailResponse, None]:
    """Yield what the log has of these kinds from a token on, or from its start where that is empty.

    Without `follow` it ends at the log's end. A `max_batch` of 0 leaves the size of messages to the ledger. Raises what
    the ledger refuses with, what keeps it away, and `TimeoutError` when it falls silent.
    """
    stub = ledger_pb2_grpc.LedgerServiceStub(await ledger.channel(_CONNECT_SECONDS))
    request = ledger_pb2.TailRequest(follow=follow, max_batch=max_batch, kinds=[int(kind) for kind in kinds])
    if token:
        request.token = token
    else:
        request.from_index = 0
    call = stub.Tail(request, wait_for_ready=False)
    try:
        while True:
            with remote_errors():
                async with asyncio.timeout(_SILENCE_SECONDS):
                    message = await call.read()
            if not isinstance(message, ledger_pb2.TailResponse):
                return
            yield message
    finally:
        call.cancel()
