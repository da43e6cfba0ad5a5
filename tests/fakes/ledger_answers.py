"""A ledger that keeps its log in memory: it reads the stream, verifies batches, and acknowledges over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import acknowledgement_pb2, ledger_pb2

from libs.events.batches import parse_batch
from libs.events.connect import NatsLink
from libs.events.consume import StreamMessage, read_stream
from libs.transparency import merkle
from libs.transparency.acknowledgement import Acknowledgement, Statement, acknowledge
from libs.transparency.chain import log_id
from libs.transparency.leaf import Leaf


@dataclass(frozen=True, slots=True)
class FakeAppraisal:
    workload_claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FakeLease:
    appraisal: FakeAppraisal


@dataclass(slots=True)
class FakeLedger:
    """What it says can be bent: another key, another commitment, an older epoch, a rejection, or nothing at all."""

    origin: str
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    signing_key: Ed25519PrivateKey | None = None
    epoch: int = 5
    silent: bool = False
    reject: str | None = None
    other_commitment: bool = False
    messages: list[bytes] = field(default_factory=list)
    by_issuer: dict[bytes, dict[int, Acknowledgement]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    index: int = 0

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, messages: int) -> None:
        while len(self.messages) < messages:
            await self.changed.wait()

    def take(self, data: bytes) -> None:
        self.messages.append(data)
        batch = parse_batch(data)
        known = self.by_issuer.setdefault(batch.issuer, {})
        entries, numbers = [], []
        for number, record in batch.numbered():
            if number in known:
                continue
            commitment = bytes(32) if self.other_commitment else record.header.commitment
            leaf = Leaf(record.header.kind, number, batch.issuer, bytes(16), commitment).data()
            statement = Statement(
                self.index, 1_700_000_000_000, 0, number, self.epoch, batch.issuer, merkle.leaf_hash(leaf)
            )
            self.index += 1
            entries.append((statement.data(), leaf))
            numbers.append(number)
        if entries:
            signed = acknowledge(
                entries, log_id=log_id(self.origin), signer_epoch=self.epoch, key=self.signing_key or self.key
            )
            known.update(zip(numbers, signed, strict=True))
        self.wake()

    async def stream_acknowledgements(
        self,
        request: ledger_pb2.StreamAcknowledgementsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[ledger_pb2.StreamAcknowledgementsResponse]:
        sent: set[int] = set()
        yield ledger_pb2.StreamAcknowledgementsResponse()
        while True:
            changed = self.changed
            if not self.silent:
                for number, answer in sorted(self.by_issuer.get(request.issuer, {}).items()):
                    if number >= request.from_seq and number not in sent:
                        sent.add(number)
                        yield self._response(number, answer)
            await changed.wait()

    def _response(self, number: int, answer: Acknowledgement) -> ledger_pb2.StreamAcknowledgementsResponse:
        if self.reject is not None:
            return ledger_pb2.StreamAcknowledgementsResponse(
                rejections=[acknowledgement_pb2.Rejection(issuer_seq=number, reason=self.reject)]
            )
        return ledger_pb2.StreamAcknowledgementsResponse(acknowledgements=[message_of(answer)])


def message_of(answer: Acknowledgement) -> acknowledgement_pb2.Acknowledgement:
    return acknowledgement_pb2.Acknowledgement(
        statement=answer.statement,
        leaf_data=answer.leaf_data,
        first=answer.first,
        count=answer.count,
        path=answer.path,
        signer_epoch=answer.signer_epoch,
        signature=answer.signature,
    )


class FakePeer:
    """The ledger as if it had been appraised: its claims, and a channel to it."""

    def __init__(self, channel: grpc.aio.Channel, claims: Mapping[str, Any]) -> None:
        self._channel = channel
        self.lease = FakeLease(FakeAppraisal(claims))

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return self._channel


@asynccontextmanager
async def serve_ledger(ledger: FakeLedger, folder: Path) -> AsyncIterator[FakePeer]:
    """Serve on a unix socket and yield the peer that a publisher would be given."""
    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(
        ledger.stream_acknowledgements,
        request_deserializer=ledger_pb2.StreamAcknowledgementsRequest.FromString,
        response_serializer=ledger_pb2.StreamAcknowledgementsResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler(
        "teemesh.ledger.v1.LedgerService", {"StreamAcknowledgements": method}
    )
    server.add_generic_rpc_handlers((service,))
    address = f"unix:{folder}/ledger.sock"
    server.add_insecure_port(address)
    await server.start()
    claims = {"ack_key": ledger.key.public_key().public_bytes_raw().hex(), "origin": ledger.origin}
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield FakePeer(channel, claims)
    finally:
        await server.stop(None)


@asynccontextmanager
async def reading(ledger: FakeLedger, link: NatsLink) -> AsyncIterator[None]:
    """Let the ledger read its stream while the body runs."""

    async def read() -> None:
        async with read_stream(link, 1, after=0, timeout=10.0) as reader:
            async for event in reader.events():
                if isinstance(event, StreamMessage):
                    ledger.take(event.data)
                    await reader.ack_all(event.sequence)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(read())
        yield
        task.cancel()
