"""A log in memory behind `LedgerService` over mutual TLS. Its tokens are plain: readers may not look inside."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import ledger_pb2

from libs.events.records import FIRST_PREVIOUS, Entry, commit_to
from libs.rpc.errors import STATUS_DETAILS_KEY, status_of
from libs.transparency.chain import chain_next, chain_start
from libs.transparency.checkpoint import Checkpoint, sign
from libs.transparency.cosignature import attach, cosign
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.merkle import CompleteTree, leaf_hash
from libs.transparency.proof_file import ProofFile
from libs.transparency.resume import LogDiverged
from services.ledger.storage.frames import Row
from services.ledger.storage.head import Head
from tests.fakes.pki import ThrowawayCa

TRUST_DOMAIN = "mesh.local"
ORIGIN = f"{TRUST_DOMAIN}/ledger/1"
ISSUER = bytes(range(32))
WITNESS = "w1.example"


@dataclass(slots=True)
class LedgerLog:
    """Append to it; cut or rewrite `entries` to misbehave."""

    entries: list[ledger_pb2.LoggedEntry] = field(default_factory=list)
    requests: list[ledger_pb2.TailRequest] = field(default_factory=list)
    failures: int = 0
    """How many calls are still to break off after their first batch."""
    wrong_head: bool = False
    frame_entries: int = 0
    """How many entries a frame has, for who asks for whole frames; 0: entries come all the same."""
    states_its_frames_head: bool = False
    """Whether a message's head is that of its last frame, whatever that is."""
    forged: Callable[[list[bytes]], list[bytes]] = list
    """What is made of the frames before they are sent."""
    hidden: int = 0
    """How many of the last entries are not read out, though there are proofs of them."""
    target: str = ""
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    witness: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    witnessed: list[int] = field(default_factory=list)
    """Sizes that the witness cosigns, one for each proof that is asked for; afterwards it is away."""
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a reader asks for what comes after the last entry."""

    def append(self, kind: Kind, body: dict[str, Any]) -> None:
        index = len(self.entries)
        tenant = "ab" * 16 if kind.is_tenants else None
        canonical = Entry(kind, ISSUER, index + 1, FIRST_PREVIOUS, tenant, body).canonical()
        salt = secrets.token_bytes(32)
        leaf = Leaf(kind, index + 1, ISSUER, bytes(16), commit_to(salt, canonical)).data()
        self.entries.append(
            ledger_pb2.LoggedEntry(
                index=index,
                leaf_data=leaf,
                vault_id=secrets.token_bytes(16) if kind.is_tenants else bytes(16),
                body=b"sealed".ljust(48, b".") if kind.is_tenants else salt + canonical,
                vault_epoch=600 if kind.is_tenants else 0,
            )
        )

    def head(self, size: int) -> bytes:
        head = chain_start(ORIGIN)
        for index, entry in enumerate(self.entries[:size]):
            head = chain_next(head, index, leaf_hash(entry.leaf_data))
        return head

    def frames(self, origin: str = ORIGIN) -> list[bytes]:
        """All entries in frames, as the log would hold them."""
        head, found = Head(origin), []
        for at in range(0, len(self.entries), self.frame_entries):
            some = self.entries[at : at + self.frame_entries]
            rows = [Row(each.leaf_data, each.vault_epoch, each.vault_id, each.body) for each in some]
            low = head.source_high + 1
            data, _, head = head.build(rows, epoch=1, source=b"\x51" * 16, source_low=low, source_high=low, wall_ns=7)
            found.append(data)
        return found

    async def prove(
        self, request: ledger_pb2.GetTlogProofRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.GetTlogProofResponse:
        size = self.witnessed.pop(0) if self.witnessed else 0
        tree = CompleteTree([leaf_hash(entry.leaf_data) for entry in self.entries[: size or None]])
        head = Checkpoint(ORIGIN, size or len(self.entries), tree.root)
        lines = [cosign(head, WITNESS, self.witness, 1_700_000_000)] if size else []
        note = attach(sign(head, self.key), lines)
        leaf = self.entries[request.index].leaf_data
        return ledger_pb2.GetTlogProofResponse(
            proof=ProofFile(leaf, request.index, tree.paths()[request.index], note).encode()
        )

    async def tail(
        self, request: ledger_pb2.TailRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[ledger_pb2.TailResponse]:
        self.requests.append(request)
        start = request.from_index
        if request.token:
            start = int.from_bytes(request.token[:8], "big")
            if start > len(self.entries) or self.head(start) != request.token[8:]:
                await _abort(context)
        if start == len(self.entries):
            self.caught_up.set()
        if self.frame_entries and request.whole_frames:
            yield self._framed(start)
            return
        for index in range(start, len(self.entries) - self.hidden):
            yield ledger_pb2.TailResponse(
                entries=[self.entries[index]],
                chain_after=bytes(32) if self.wrong_head else self.head(index + 1),
                token=(index + 1).to_bytes(8, "big") + self.head(index + 1),
                log_size=len(self.entries),
            )
            if self.failures > 0:
                self.failures -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        yield ledger_pb2.TailResponse(log_size=len(self.entries))

    def _framed(self, start: int) -> ledger_pb2.TailResponse:
        size = len(self.entries)
        frames = self.forged(self.frames()[start // self.frame_entries :])
        return ledger_pb2.TailResponse(
            frames=frames,
            chain_after=frames[-1][-112:-80] if self.states_its_frames_head else self.head(size),
            token=size.to_bytes(8, "big") + self.head(size),
            log_size=size,
        )


@asynccontextmanager
async def serving_log(log: LedgerLog, ca: ThrowawayCa) -> AsyncIterator[None]:
    key, certificate = ca.leaf(None, f"ledger.{TRUST_DOMAIN}")
    handler = grpc.unary_stream_rpc_method_handler(
        log.tail,
        request_deserializer=ledger_pb2.TailRequest.FromString,
        response_serializer=ledger_pb2.TailResponse.SerializeToString,
    )
    prover = grpc.unary_unary_rpc_method_handler(
        log.prove,
        request_deserializer=ledger_pb2.GetTlogProofRequest.FromString,
        response_serializer=ledger_pb2.GetTlogProofResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "teemesh.ledger.v1.LedgerService", {"Tail": handler, "GetTlogProof": prover}
            ),
        )
    )
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca.pem, require_client_auth=True)
    log.target = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def _abort(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    status = status_of(LogDiverged("another history"))
    context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, status.message)
