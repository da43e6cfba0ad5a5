"""Wire to domain; decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from teemesh.ledger.v1 import acknowledgement_pb2 as ack_pb
from teemesh.ledger.v1 import ledger_pb2 as pb
from teemesh.ledger.v1 import ledger_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.events.acknowledgements import Refused
from libs.identity.lease import caller_lease
from libs.rpc.calls import Context
from libs.rpc.policies import MethodRule, ServiceBinding
from libs.transparency.acknowledgement import Acknowledgement
from services.ledger.acknowledging import Acknowledgements, Alive, Answer
from services.ledger.auditing import Checkpoints
from services.ledger.proofs import EntryUnknown, Proofs
from services.ledger.reading import LogReader, StoredEntry
from services.ledger.tail import DEFAULT_BATCH, MAX_BATCH, Tail
from services.ledger.tiles import Tiles
from services.ledger.vaults import Vaults, seal_for

_Naming: TypeAlias = (
    pb.GetInclusionProofRequest | pb.GetEntryRequest | pb.GetTlogProofRequest | pb.GetCoseReceiptRequest
)
_SERVICE = "teemesh.ledger.v1.LedgerService"
_ISSUERS = frozenset({"router", "kms", "registry"})
_READERS = frozenset({"router", "operator", "auditor"})

METHODS = {
    f"/{_SERVICE}/OpenVault": MethodRule(roles=frozenset({"router"})),
    f"/{_SERVICE}/StreamAcknowledgements": MethodRule(roles=_ISSUERS, long_lived=True),
    f"/{_SERVICE}/GetCheckpoint": MethodRule(roles=_READERS),
    f"/{_SERVICE}/GetInclusionProof": MethodRule(roles=_READERS),
    f"/{_SERVICE}/GetConsistencyProof": MethodRule(roles=_READERS),
    f"/{_SERVICE}/GetEntry": MethodRule(roles=_READERS),
    f"/{_SERVICE}/Tail": MethodRule(roles=_READERS | {"kms"}, long_lived=True),
    f"/{_SERVICE}/GetTlogProof": MethodRule(roles=_READERS),
    f"/{_SERVICE}/GetCoseReceipt": MethodRule(roles=_READERS),
}


class IssuerMalformed(MeshError):
    """An issuer has 32 bytes, and its numbers begin at 1."""

    code = Code.INVALID_ARGUMENT
    reason = "ISSUER_MALFORMED"


class BatchTooLarge(MeshError):
    """A batch of a tail has at most 256 entries."""

    code = Code.INVALID_ARGUMENT
    reason = "BATCH_TOO_LARGE"


class LedgerNotReady(MeshError):
    """The ledger has no keys yet: the KMS has not released them."""

    code = Code.UNAVAILABLE
    reason = "LEDGER_NOT_READY"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What there is to serve."""

    vaults: Vaults
    acknowledgements: Acknowledgements
    checkpoints: Checkpoints
    proofs: Proofs
    reader: LogReader
    tail: Tail
    tiles: Tiles


class LedgerServicer(pb_grpc.LedgerServiceServicer):
    """See `ledger.proto`. Until `begin`, every method fails with LEDGER_NOT_READY."""

    def __init__(self) -> None:
        self._ledger: Ledger | None = None

    def begin(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @property
    def _served(self) -> Ledger:
        if self._ledger is None:
            raise LedgerNotReady("the ledger waits for its keys: try again")
        return self._ledger

    async def OpenVault(  # noqa: N802
        self, request: pb.OpenVaultRequest, context: Context
    ) -> pb.OpenVaultResponse:
        lease = caller_lease()
        vault = await self._served.vaults.open(request.tenant_id)
        sealed = seal_for(vault, lease.appraisal.workload_claims.get("hpke_key"), lease.certificate.spiffe_id)
        return pb.OpenVaultResponse(vault_id=sealed.vault_id, vault_epoch=sealed.epoch, sealed_key=sealed.sealed)

    async def StreamAcknowledgements(  # noqa: N802
        self, request: pb.StreamAcknowledgementsRequest, context: Context
    ) -> AsyncIterator[pb.StreamAcknowledgementsResponse]:
        if len(request.issuer) != 32 or request.from_seq < 1:
            raise IssuerMalformed("an issuer has 32 bytes, and its numbers begin at 1")
        async with aclosing(self._served.acknowledgements.answers(request.issuer, request.from_seq)) as answers:
            async for answer in answers:
                yield _wire_answer(answer)

    async def GetCheckpoint(  # noqa: N802
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        return pb.GetCheckpointResponse(checkpoint=self._served.checkpoints.newest.note)

    async def GetInclusionProof(  # noqa: N802
        self, request: pb.GetInclusionProofRequest, context: Context
    ) -> pb.GetInclusionProofResponse:
        ledger = self._served
        proof = ledger.proofs.inclusion(self._index(request.WhichOneof("leaf"), request), request.size)
        return pb.GetInclusionProofResponse(
            index=proof.index, size=proof.size, path=proof.path, leaf_hash=proof.leaf_hash, checkpoint=proof.checkpoint
        )

    async def GetConsistencyProof(  # noqa: N802
        self, request: pb.GetConsistencyProofRequest, context: Context
    ) -> pb.GetConsistencyProofResponse:
        proof = self._served.proofs.consistency(request.first, request.second)
        return pb.GetConsistencyProofResponse(path=proof.path, second=proof.second)

    async def GetEntry(  # noqa: N802
        self, request: pb.GetEntryRequest, context: Context
    ) -> pb.GetEntryResponse:
        index = self._index(request.WhichOneof("entry"), request)
        return pb.GetEntryResponse(entry=_wire_entry(self._served.reader.entry(index)))

    async def Tail(  # noqa: N802
        self, request: pb.TailRequest, context: Context
    ) -> AsyncIterator[pb.TailResponse]:
        tail = self._served.tail
        if request.max_batch > MAX_BATCH:
            raise BatchTooLarge(f"a batch has at most {MAX_BATCH} entries")
        if request.WhichOneof("start") == "token":
            position = await tail.from_token(request.token)
        else:
            position = await tail.from_index(request.from_index)
        reading = tail.read(
            position,
            follow=request.follow,
            max_batch=request.max_batch or DEFAULT_BATCH,
            kinds=frozenset(request.kinds),
        )
        async with aclosing(reading) as batches:
            async for batch in batches:
                yield pb.TailResponse(
                    entries=[_wire_entry(stored) for stored in batch.entries],
                    chain_after=batch.chain_after,
                    checkpoint=batch.checkpoint,
                    token=batch.token,
                    log_size=batch.log_size,
                )

    async def GetTlogProof(  # noqa: N802
        self, request: pb.GetTlogProofRequest, context: Context
    ) -> pb.GetTlogProofResponse:
        index = self._index(request.WhichOneof("entry"), request)
        return pb.GetTlogProofResponse(proof=self._served.proofs.proof_file(index))

    async def GetCoseReceipt(  # noqa: N802
        self, request: pb.GetCoseReceiptRequest, context: Context
    ) -> pb.GetCoseReceiptResponse:
        index = self._index(request.WhichOneof("entry"), request)
        receipt, leaf_data = await self._served.proofs.cose_receipt(index)
        return pb.GetCoseReceiptResponse(receipt=receipt, leaf_data=leaf_data)

    def _index(self, named: str | None, request: _Naming) -> int:
        proofs = self._served.proofs
        if named is None:
            raise EntryUnknown("name an entry by its index or its id")
        return proofs.find(request.entry_id) if named == "entry_id" else proofs.require(request.index)


def ledger_binding(servicer: LedgerServicer) -> ServiceBinding:
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_LedgerServiceServicer_to_server(servicer, server),
        methods=METHODS,
    )


def _wire_answer(answer: Answer) -> pb.StreamAcknowledgementsResponse:
    match answer:
        case Acknowledgement():
            return pb.StreamAcknowledgementsResponse(
                acknowledgement=ack_pb.Acknowledgement(
                    statement=answer.statement,
                    leaf_data=answer.leaf_data,
                    first=answer.first,
                    count=answer.count,
                    path=answer.path,
                    signer_epoch=answer.signer_epoch,
                    signature=answer.signature,
                )
            )
        case Refused():
            rejection = ack_pb.Rejection(issuer_seq=answer.issuer_seq, reason=answer.reason)
            return pb.StreamAcknowledgementsResponse(rejection=rejection)
        case Alive():
            return pb.StreamAcknowledgementsResponse(heartbeat=pb.Heartbeat())


def _wire_entry(stored: StoredEntry) -> pb.LoggedEntry:
    row = stored.row
    return pb.LoggedEntry(
        index=stored.index, leaf_data=row.leaf_data, vault_id=row.vault_id, body=row.body, vault_epoch=row.vault_epoch
    )
