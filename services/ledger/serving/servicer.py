"""Wire to domain; decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from teemesh.ledger.v1 import ledger_pb2 as pb
from teemesh.ledger.v1 import ledger_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import parse
from libs.identity.lease import caller_lease
from libs.policy.vault_orders import VaultPart
from libs.rpc.calls import Context
from libs.rpc.policies import MethodRule, ServiceBinding, current_caller
from services.ledger.checkpoints.auditing import Checkpoints
from services.ledger.checkpoints.proofs import EntryUnknown, Proofs
from services.ledger.growth import Growth
from services.ledger.intake.acknowledging import Acknowledgements
from services.ledger.serving.tail import DEFAULT_BATCH, MAX_BATCH, Tail
from services.ledger.serving.tiles import Tiles
from services.ledger.serving.wire import wire_answers, wire_entry
from services.ledger.storage.prunings import Prunings
from services.ledger.storage.reading import LogReader
from services.ledger.storage.selection import Selection
from services.ledger.vaults.closed import ClosedVaults
from services.ledger.vaults.orders import VaultOrders
from services.ledger.vaults.prune_orders import PruneOrders
from services.ledger.vaults.vaults import Vaults, VaultUnknown, require_tenant_id, seal_for

_Naming: TypeAlias = (
    pb.GetInclusionProofRequest | pb.GetEntryRequest | pb.GetTlogProofRequest | pb.GetCoseReceiptRequest
)
_SERVICE = "teemesh.ledger.v1.LedgerService"
_ISSUERS = frozenset({"router", "kms", "registry", "job", "ledger"})
_READERS = frozenset({"router", "operator", "auditor"})
_OPERATORS = frozenset({"operator"})
_PEOPLE = frozenset({"operator", "auditor"})

METHODS = {
    f"/{_SERVICE}/OpenVault": MethodRule(roles=frozenset({"router"})),
    f"/{_SERVICE}/StreamAcknowledgements": MethodRule(roles=_ISSUERS, long_lived=True),
    f"/{_SERVICE}/GetCheckpoint": MethodRule(roles=_READERS),
    f"/{_SERVICE}/GetInclusionProof": MethodRule(roles=_READERS),
    f"/{_SERVICE}/GetConsistencyProof": MethodRule(roles=_READERS),
    f"/{_SERVICE}/GetEntry": MethodRule(roles=_READERS),
    f"/{_SERVICE}/Tail": MethodRule(roles=_READERS | {"kms"}, long_lived=True),
    f"/{_SERVICE}/GetVault": MethodRule(roles=_OPERATORS),
    f"/{_SERVICE}/EraseVault": MethodRule(roles=_OPERATORS),
    f"/{_SERVICE}/SetHold": MethodRule(roles=_OPERATORS),
    f"/{_SERVICE}/GetTagKey": MethodRule(roles=_PEOPLE),
    f"/{_SERVICE}/AllowPruning": MethodRule(roles=_OPERATORS),
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


class NotWriter(MeshError):
    """This member of the log does not write: ask the one that does, or again when there is one."""

    code = Code.UNAVAILABLE
    reason = "NOT_WRITER"


@dataclass(frozen=True, slots=True)
class Reading:
    """What every member of a log serves: no more of it than counts."""

    growth: Growth
    checkpoints: Checkpoints
    proofs: Proofs
    reader: LogReader
    tail: Tail
    closed: ClosedVaults
    prunings: Prunings
    """As they were when the log was opened: no segment is pruned after that."""
    tiles: Tiles


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a writer serves."""

    vaults: Vaults
    acknowledgements: Acknowledgements
    vault_orders: VaultOrders
    prune_orders: PruneOrders
    reading: Reading


class LedgerServicer(pb_grpc.LedgerServiceServicer):
    """See `ledger.proto`. Until `begin`, or `follow`, every method fails with LEDGER_NOT_READY."""

    def __init__(self) -> None:
        self._ledger: Ledger | None = None
        self._followed: Reading | None = None
        self._writer: Callable[[], str] = str

    def begin(self, ledger: Ledger) -> None:
        """Serve everything."""
        self._ledger = ledger

    def follow(self, reading: Reading, writer: Callable[[], str]) -> None:
        """Serve what can be read. `writer` names the instance to go to for the rest, where one is known."""
        self._followed, self._writer = reading, writer

    @property
    def _served(self) -> Ledger:
        if self._ledger is not None:
            return self._ledger
        if self._followed is not None:
            raise NotWriter(f"this is a follower, the writer is {self._writer() or 'not known yet'}")
        raise LedgerNotReady("the ledger waits for its keys: try again")

    @property
    def _reading(self) -> Reading:
        if self._ledger is None and self._followed is not None:
            return self._followed
        return self._served.reading

    async def OpenVault(  # noqa: N802
        self, request: pb.OpenVaultRequest, context: Context
    ) -> pb.OpenVaultResponse:
        lease, ledger = caller_lease(), self._served
        ledger.reading.growth.require_all()
        vault = await ledger.vaults.open(request.tenant_id)
        # The KMS was waited for: another writer may have erased meanwhile what this one would give the key of.
        ledger.reading.growth.require_all()
        sealed = seal_for(vault, lease.appraisal.workload_claims.get("hpke_key"), lease.certificate.spiffe_id)
        return pb.OpenVaultResponse(vault_id=sealed.vault_id, vault_epoch=sealed.epoch, sealed_key=sealed.sealed)

    async def StreamAcknowledgements(  # noqa: N802
        self, request: pb.StreamAcknowledgementsRequest, context: Context
    ) -> AsyncIterator[pb.StreamAcknowledgementsResponse]:
        if len(request.issuer) != 32 or request.from_seq < 1:
            raise IssuerMalformed("an issuer has 32 bytes, and its numbers begin at 1")
        async with aclosing(self._served.acknowledgements.answers(request.issuer, request.from_seq)) as told:
            async for answers in told:
                yield wire_answers(answers)

    async def GetCheckpoint(  # noqa: N802
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        return pb.GetCheckpointResponse(checkpoint=self._reading.checkpoints.newest.note)

    async def GetInclusionProof(  # noqa: N802
        self, request: pb.GetInclusionProofRequest, context: Context
    ) -> pb.GetInclusionProofResponse:
        index = await self._index(request.WhichOneof("leaf"), request)
        proof = self._reading.proofs.inclusion(index, request.size)
        return pb.GetInclusionProofResponse(
            index=proof.index, size=proof.size, path=proof.path, leaf_hash=proof.leaf_hash, checkpoint=proof.checkpoint
        )

    async def GetConsistencyProof(  # noqa: N802
        self, request: pb.GetConsistencyProofRequest, context: Context
    ) -> pb.GetConsistencyProofResponse:
        proof = self._reading.proofs.consistency(request.first, request.second)
        return pb.GetConsistencyProofResponse(path=proof.path, second=proof.second)

    async def GetEntry(  # noqa: N802
        self, request: pb.GetEntryRequest, context: Context
    ) -> pb.GetEntryResponse:
        reading = self._reading
        index = await self._index(request.WhichOneof("entry"), request)
        # Its frame may be long, and its disk slow.
        stored = await asyncio.to_thread(reading.reader.entry, index)
        [closed_by] = await reading.closed.closed_by([stored])
        entry = wire_entry(stored, closed_by, reading.prunings)
        return pb.GetEntryResponse(entry=entry)

    async def Tail(  # noqa: N802
        self, request: pb.TailRequest, context: Context
    ) -> AsyncIterator[pb.TailResponse]:
        tail, closed, prunings = self._reading.tail, self._reading.closed, self._reading.prunings
        if request.max_batch > MAX_BATCH:
            raise BatchTooLarge(f"a batch has at most {MAX_BATCH} entries")
        selection = Selection(frozenset(request.kinds), request.vault_id, request.issuer)
        if request.WhichOneof("start") == "token":
            position = await tail.from_token(request.token)
        else:
            position = await tail.from_index(request.from_index)
        reading = tail.read(
            position,
            follow=request.follow,
            max_batch=request.max_batch or DEFAULT_BATCH,
            selection=selection,
            are_open=closed.are_open if request.whole_frames else None,
        )
        async with aclosing(reading) as batches:
            async for batch in batches:
                closed_by = await closed.closed_by(batch.entries)
                entries = [wire_entry(*each, prunings) for each in zip(batch.entries, closed_by, strict=True)]
                yield pb.TailResponse(
                    entries=entries,
                    chain_after=batch.chain_after,
                    checkpoint=batch.checkpoint,
                    token=batch.token,
                    log_size=batch.log_size,
                    frames=batch.frames,
                )

    async def GetVault(  # noqa: N802
        self, request: pb.GetVaultRequest, context: Context
    ) -> pb.GetVaultResponse:
        ledger = self._served
        # By what counts, as orders are answered: what is only written here may be lost again.
        said = await ledger.reading.closed.said()
        ledger.reading.growth.require_all()
        vault = ledger.vaults.of_tenant(require_tenant_id(request.tenant_id))
        if vault is None:
            raise VaultUnknown("the tenant has no vault in this log")
        return pb.GetVaultResponse(
            vault_id=vault.vault_id,
            epochs=sorted(vault.epochs),
            held=said.is_held(vault.vault_id),
            closed=said.of(VaultPart(vault.vault_id, None)) is not None,
        )

    async def EraseVault(  # noqa: N802
        self, request: pb.EraseVaultRequest, context: Context
    ) -> pb.EraseVaultResponse:
        ledger = self._served
        # A writer that was stopped for a while may have another, who knows of vaults and holds that it does not.
        ledger.reading.growth.require_all()
        erased = await ledger.vault_orders.erase(request.signed_order)
        return pb.EraseVaultResponse(
            vault_id=erased.part.vault_id,
            epoch=erased.part.epoch or 0,
            ordered_index=erased.ordered_index,
            done_index=erased.done_index,
            last_seq=erased.said.last_seq,
            key=erased.said.key,
        )

    async def SetHold(  # noqa: N802
        self, request: pb.SetHoldRequest, context: Context
    ) -> pb.SetHoldResponse:
        ledger = self._served
        ledger.reading.growth.require_all()
        hold = await ledger.vault_orders.set_hold(request.signed_order)
        return pb.SetHoldResponse(vault_id=hold.vault_id, held=hold.held, index=hold.index)

    async def GetTagKey(  # noqa: N802
        self, request: pb.GetTagKeyRequest, context: Context
    ) -> pb.GetTagKeyResponse:
        ledger, receiver = self._served, parse(current_caller().certificate_der).spki_sha256
        ledger.reading.growth.require_all()
        given = await ledger.vault_orders.give_tag_key(request.signed_order, receiver)
        # The log was waited for, and another writer may have erased the vault meanwhile.
        ledger.reading.growth.require_all()
        return pb.GetTagKeyResponse(vault_id=given.vault_id, tag_key=given.key, index=given.index)

    async def AllowPruning(  # noqa: N802
        self, request: pb.AllowPruningRequest, context: Context
    ) -> pb.AllowPruningResponse:
        allowed = await self._served.prune_orders.allow(request.signed_order)
        return pb.AllowPruningResponse(min_index=allowed.min_index, index=allowed.index)

    async def GetTlogProof(  # noqa: N802
        self, request: pb.GetTlogProofRequest, context: Context
    ) -> pb.GetTlogProofResponse:
        index = await self._index(request.WhichOneof("entry"), request)
        return pb.GetTlogProofResponse(proof=await self._reading.proofs.proof_file(index))

    async def GetCoseReceipt(  # noqa: N802
        self, request: pb.GetCoseReceiptRequest, context: Context
    ) -> pb.GetCoseReceiptResponse:
        index = await self._index(request.WhichOneof("entry"), request)
        receipt, leaf_data = await self._reading.proofs.cose_receipt(index)
        return pb.GetCoseReceiptResponse(receipt=receipt, leaf_data=leaf_data)

    async def _index(self, named: str | None, request: _Naming) -> int:
        proofs = self._reading.proofs
        if named is None:
            raise EntryUnknown("name an entry by its index or its id")
        return await proofs.find(request.entry_id) if named == "entry_id" else proofs.require(request.index)


def ledger_binding(servicer: LedgerServicer) -> ServiceBinding:
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_LedgerServiceServicer_to_server(servicer, server),
        methods=METHODS,
    )
