"""It is responsible for gathering a lineage from a running ledger: the stages that lead to some weights, their jobs'
keysets, and a place of each in one signed tree.

Nothing is judged here: what is gathered shows by itself what it is worth.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

import grpc.aio
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2 as pb
from teemesh.ledger.v1 import ledger_pb2_grpc

from libs.client.commitment import LedgerName
from libs.client.lineage import MAX_STAGES, Lineage
from libs.client.logged import LoggedEntry
from libs.errors import Code, MeshError
from libs.events.pipeline import Stage, parse_stage
from libs.events.records import SALT_SIZE, Entry, parse_entry
from libs.identity.certificate import CertificateNotAccepted, MeshCertificate, der_of, verify_issued
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.errors import remote_errors
from libs.tee import evidence as evidences
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from services.cli.mesh.service_access import ServiceAccess

_NOT_YET = frozenset({"SIZE_NOT_REACHED", "NO_CHECKPOINT"})
_PAUSE_SECONDS = 0.3
_BATCH = 256


class WeightsUnknown(MeshError):
    """No stage in the log made these weights."""

    code = Code.NOT_FOUND
    reason = "WEIGHTS_UNKNOWN"


class StagesAmbiguous(MeshError):
    """Several stages made these weights: one of them must be named."""

    code = Code.FAILED_PRECONDITION
    reason = "STAGES_AMBIGUOUS"


class LineageTooLong(MeshError):
    """More stages led to the weights than a lineage has."""

    code = Code.FAILED_PRECONDITION
    reason = "LINEAGE_TOO_LONG"


async def gather(access: ServiceAccess, weights: bytes, stage: bytes | None, timeout_seconds: float) -> Lineage:
    """Return the stages that led to weights, from the one whose entry id is `stage` where several made them.

    Raises `WeightsUnknown`, `StagesAmbiguous`, `LineageTooLong`, `TimeoutError`, and the refusals of the way there.
    """
    certificate = await _certificate(access, timeout_seconds)
    async with (
        asyncio.timeout(timeout_seconds),
        open_channel(
            access.target,
            root_pem=certificate.pem,
            server_name=certificate.server_name,
            key_pem=access.key_pem,
            certificate_pem=access.certificate_pem,
        ) as channel,
    ):
        with remote_errors():
            return await _Gathering(channel, timeout_seconds).gather(certificate, weights, stage)


async def _certificate(access: ServiceAccess, timeout_seconds: float) -> MeshCertificate:
    """Return the certificate of the ledger that answers now, its key proven and its issuer the mesh CA."""
    leaf = await fetch_leaf(
        access.target,
        server_name=f"{access.role}.{access.trust_domain}",
        timeout=timeout_seconds,
        ca_pem=access.mesh_ca_pem,
        key_pem=access.key_pem,
        certificate_pem=access.certificate_pem,
    )
    certificate = verify_issued(leaf, der_of(access.mesh_ca_pem), time.time())
    if certificate.role != access.role:
        raise CertificateNotAccepted(f"{access.target} is {certificate.spiffe_id}, not a {access.role}")
    return certificate


class _Gathering:
    """One ledger, asked over one channel."""

    def __init__(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
        self._evidence = evidence_pb2_grpc.EvidenceServiceStub(channel)
        self._seconds = timeout_seconds

    async def gather(self, certificate: MeshCertificate, weights: bytes, stage: bytes | None) -> Lineage:
        answer = await self._evidence.GetEvidence(evidence_pb2.GetEvidenceRequest(), timeout=self._seconds)
        document: bytes = answer.document
        origin = str(evidences.parse(document).claims.get("origin"))
        stages = await self._stages(await self._made(weights, stage))
        issuers = {_entry(each).issuer for each in stages}
        keysets = [await self._entry(entry_id(issuer, 1)) for issuer in sorted(issuers)]
        shown = [*stages, *keysets]
        newest = await self._prove(max(each.index for each in shown))
        proofs = [await self._prove(each.index, newest.size) for each in shown]
        logged = [_logged(each, proof) for each, proof in zip(shown, proofs, strict=True)]
        return Lineage(
            gathered_at=int(time.time()),
            ledger=LedgerName(certificate.der, hashlib.sha256(document).hexdigest(), origin),
            ledger_evidence=document,
            checkpoint=newest.checkpoint,
            stages=tuple(logged[: len(stages)]),
            keysets=tuple(logged[len(stages) :]),
        )

    async def _made(self, weights: bytes, stage: bytes | None) -> pb.LoggedEntry:
        """Return the one stage that made these weights."""
        found: list[pb.LoggedEntry] = []
        request = pb.TailRequest(from_index=0, kinds=[Kind.PIPELINE], max_batch=_BATCH)
        async for batch in self._ledger.Tail(request, timeout=self._seconds):
            for each in batch.entries:
                entry = _entry(each)
                wanted = stage in (None, entry_id(entry.issuer, entry.issuer_seq))
                if wanted and any(made.sha256 == weights for made in parse_stage(entry.body).outputs):
                    found.append(each)
            if len(found) > 1:
                ids = ", ".join(entry_id(_entry(each).issuer, _entry(each).issuer_seq).hex() for each in found)
                raise StagesAmbiguous(f"name one with --stage: {ids}")
        if not found:
            raise WeightsUnknown(f"no stage in the log made {weights.hex()}")
        return found[0]

    async def _stages(self, first: pb.LoggedEntry) -> Sequence[pb.LoggedEntry]:
        """Return a stage and all that led to it, each once, the first one first."""
        found, named = [first], {entry_id(_entry(first).issuer, _entry(first).issuer_seq)}
        for each in found:
            for taken in _stage(each).inputs:
                if taken.made_by is None or taken.made_by in named:
                    continue
                if len(found) == MAX_STAGES:
                    raise LineageTooLong(f"more than {MAX_STAGES} stages led to the weights")
                named.add(taken.made_by)
                found.append(await self._entry(taken.made_by))
        return found

    async def _entry(self, name: bytes) -> pb.LoggedEntry:
        answer = await self._ledger.GetEntry(pb.GetEntryRequest(entry_id=name), timeout=self._seconds)
        return answer.entry

    async def _prove(self, index: int, size: int = 0) -> pb.GetInclusionProofResponse:
        """Return a proof in the tree of this size, by default in the newest one, which is waited for."""
        request = pb.GetInclusionProofRequest(index=index, size=size)
        while True:
            try:
                with remote_errors():
                    return await self._ledger.GetInclusionProof(request, timeout=self._seconds)
            except MeshError as error:
                if error.reason not in _NOT_YET:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)


def _entry(logged: pb.LoggedEntry) -> Entry:
    return parse_entry(logged.body[SALT_SIZE:])


def _stage(logged: pb.LoggedEntry) -> Stage:
    return parse_stage(_entry(logged).body)


def _logged(entry: pb.LoggedEntry, proof: pb.GetInclusionProofResponse) -> LoggedEntry:
    salt, canonical = entry.body[:SALT_SIZE], entry.body[SALT_SIZE:]
    return LoggedEntry(canonical, salt, entry.leaf_data, entry.index, tuple(proof.path))
