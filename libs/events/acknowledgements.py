"""Responsible for the ledger's answers: follow them, and believe only what its attested key signed about our bytes.

They come over gRPC from the appraised ledger, not over NATS, which may drop them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
import structlog
from teemesh.ledger.v1 import acknowledgement_pb2, ledger_pb2, ledger_pb2_grpc

from libs.errors import Code, MeshError
from libs.events.outbox_items import RecordFacts
from libs.rpc.errors import remote_errors
from libs.transparency import leaf
from libs.transparency.acknowledgement import Acknowledgement, LastSignature, Statement, verify_acknowledgement
from libs.transparency.chain import log_id

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 25.0
"""The ledger sends a message at least every 10 s; this long without a message means that the stream is dead."""
_FIRST_RETRY_SECONDS = 0.25
_LAST_RETRY_SECONDS = 1.0

log = structlog.get_logger()


class AckKeyNotAttested(MeshError):
    """The ledger's evidence names no acknowledgement key, or another log."""

    code = Code.PERMISSION_DENIED
    reason = "ACK_KEY_NOT_ATTESTED"


class AcknowledgementNotOurs(MeshError):
    """The ledger signed something else than the record that was sent."""

    code = Code.PERMISSION_DENIED
    reason = "ACKNOWLEDGEMENT_NOT_OURS"


class SignerSuperseded(MeshError):
    """A writer signed that a later one has already replaced."""

    code = Code.PERMISSION_DENIED
    reason = "SIGNER_SUPERSEDED"


@dataclass(frozen=True, slots=True)
class Received:
    """An acknowledgement as it came, and the key and log that the ledger's evidence names. Not verified yet."""

    acknowledgement: Acknowledgement
    ack_key: bytes
    log_id: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The ledger will never accept this record."""

    issuer_seq: int
    reason: str


class AckSource(Protocol):
    """Where an issuer's answers come from."""

    def follow(self, issuer: bytes, from_seq: Callable[[], int]) -> AsyncIterator[Received | Refused]:
        """Yield answers for ever, in any order, perhaps repeatedly.

        Every time it (re)connects it MUST ask again from `from_seq()`: the lowest number without an answer.
        """
        ...


class _Appraisal(Protocol):
    @property
    def workload_claims(self) -> Mapping[str, Any]: ...


class _Lease(Protocol):
    @property
    def appraisal(self) -> _Appraisal: ...


class LedgerPeer(Protocol):
    """The ledger as an appraised peer."""

    @property
    def lease(self) -> _Lease: ...

    async def channel(self, timeout: float) -> grpc.aio.Channel: ...


class LedgerAcknowledgements:
    """Answers from the ledger of one log, over its appraised channel."""

    def __init__(self, peer: LedgerPeer, origin: str) -> None:
        self._peer = peer
        self._origin = origin

    async def follow(self, issuer: bytes, from_seq: Callable[[], int]) -> AsyncIterator[Received | Refused]:
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                async for answer in self._stream(issuer, from_seq()):
                    delay = _FIRST_RETRY_SECONDS
                    yield answer
                log.info("acknowledgement stream ended")
            except MeshError as error:
                log.warning("no acknowledgement stream", reason=error.reason, retry_seconds=delay)
            except TimeoutError:
                log.warning("the acknowledgement stream fell silent", retry_seconds=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY_SECONDS)

    async def _stream(self, issuer: bytes, from_seq: int) -> AsyncIterator[Received | Refused]:
        channel = await self._peer.channel(_CONNECT_SECONDS)
        ack_key, log_name = self._attested()
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        call = stub.StreamAcknowledgements(
            ledger_pb2.StreamAcknowledgementsRequest(issuer=issuer, from_seq=from_seq), wait_for_ready=False
        )
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        message = await call.read()
                if not isinstance(message, ledger_pb2.StreamAcknowledgementsResponse):
                    return
                for rejection in message.rejections:
                    yield Refused(rejection.issuer_seq, rejection.reason)
                for acknowledgement in message.acknowledgements:
                    yield Received(acknowledgement_of(acknowledgement), ack_key, log_name)
        finally:
            call.cancel()

    def _attested(self) -> tuple[bytes, bytes]:
        claims = self._peer.lease.appraisal.workload_claims
        if claims.get("origin") != self._origin:
            raise AckKeyNotAttested("the ledger's evidence names another log")
        try:
            return bytes.fromhex(claims["ack_key"]), log_id(self._origin)
        except (KeyError, TypeError, ValueError) as error:
            raise AckKeyNotAttested("the ledger's evidence names no acknowledgement key") from error


def acknowledgement_of(message: acknowledgement_pb2.Acknowledgement) -> Acknowledgement:
    """Return the value of a message; nothing is verified."""
    return Acknowledgement(
        statement=message.statement,
        leaf_data=message.leaf_data,
        first=message.first,
        count=message.count,
        path=tuple(message.path),
        signer_epoch=message.signer_epoch,
        signature=message.signature,
    )


def verify_received(
    received: Received, issuer: bytes, facts: RecordFacts, issuer_seq: int, epoch: int, last: LastSignature
) -> Statement:
    """Return the statement if the ledger signed it about this very record, the tag aside, which only it can know.

    `epoch` is the highest signer epoch seen, `last` the signature that verified last. Raises `AcknowledgementInvalid`,
    `AcknowledgementNotOurs` or `SignerSuperseded`.
    """
    statement = verify_acknowledgement(received.acknowledgement, received.ack_key, received.log_id, last)
    public = leaf.parse(received.acknowledgement.leaf_data)
    theirs = (public.issuer, public.issuer_seq, public.kind, public.commitment)
    if theirs != (issuer, issuer_seq, facts.kind, facts.commitment):
        raise AcknowledgementNotOurs("the ledger acknowledged another record than the one sent")
    if received.acknowledgement.signer_epoch < epoch:
        raise SignerSuperseded("a later writer has signed already")
    return statement
