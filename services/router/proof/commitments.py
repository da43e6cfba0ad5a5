"""It is responsible for what proves a receipt's place in the ledger to somebody without a mesh certificate.

Everything in it is verified by its reader: the entry by its commitment, the acknowledgement and the checkpoint by keys
that the ledger's own evidence binds.
"""

from __future__ import annotations

from typing import Any

from teemesh.ledger.v1 import acknowledgement_pb2, ledger_pb2, ledger_pb2_grpc

from libs import jcs
from libs.aci.encoding import is_hex
from libs.errors import MeshError
from libs.identity.lease import Lease
from libs.identity.ledger_writer import LedgerWriter
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.rpc.errors import remote_errors
from libs.tee.evidence import Evidence
from libs.transparency.acknowledgement import Statement
from services.router.errors import LedgerUnavailable, NotFound
from services.router.proof.kept_documents import KeptDocuments
from services.router.proof.kept_receipts import StoredReceipt

_CALL_SECONDS = 5.0


class Attested:
    """Who wrote an entry and who acknowledged it, as their evidence said then.

    Every process start has other keys, so a receipt must remember the evidence that stood behind it, not look at who
    runs now.
    """

    def __init__(self, member: Member, ledger: Peer | LedgerWriter, issuer_boot: bytes) -> None:
        self._member = member
        self._ledger = ledger
        self._issuer_boot = issuer_boot
        self._last: tuple[Evidence, Lease, bytes] | None = None
        """What was said last, and of whom: it stays the same from one renewal to the next."""

    def now(self) -> tuple[bytes, dict[bytes, bytes | None]]:
        """Return the canonical JSON to store with a receipt committed now, and the evidence documents that it names."""
        own, lease = self._member.identity.current.evidence, self._ledger.lease
        if self._last is None or self._last[0] is not own or self._last[1] is not lease:
            self._last = own, lease, self._named(own, lease)
        return self._last[2], {each.digest: each.document for each in (own, lease.evidence)}

    def _named(self, own: Evidence, lease: Lease) -> bytes:
        return jcs.dumps(
            {
                "issuer_boot": self._issuer_boot.hex(),
                "issuer_evidence_sha256": own.digest.hex(),
                "acknowledged_by": ledger_document(lease),
            }
        )


class Commitments:
    """Assembles commitments from the router's own copy and the ledger's proofs."""

    def __init__(self, member: Member, ledger: Peer | LedgerWriter, documents: KeptDocuments) -> None:
        self._member = member
        self._ledger = ledger
        self._documents = documents

    async def of(self, stored: StoredReceipt) -> dict[str, Any]:
        """Return the commitment document. Raises `NotFound` until a checkpoint covers it, or `LedgerUnavailable`."""
        if stored.acknowledgement is None or stored.attested is None:
            raise NotFound("the ledger has not acknowledged this receipt yet")
        acknowledgement = acknowledgement_pb2.Acknowledgement.FromString(stored.acknowledgement)
        statement = Statement.parse(acknowledgement.statement)
        proof = await self._prove(statement.index)
        lease = self._ledger.lease
        await self._documents.put(lease.evidence.digest, lease.evidence.document)
        return {
            "entry": stored.entry.decode("utf-8"),
            "salt": stored.salt.hex(),
            "issuer": statement.issuer.hex(),
            "issuer_seq": stored.issuer_seq,
            "entry_id": stored.entry_id.hex(),
            "leaf_data": acknowledgement.leaf_data.hex(),
            "leaf_index": statement.index,
            "acknowledgement": {
                "statement": acknowledgement.statement.hex(),
                "leaf_data": acknowledgement.leaf_data.hex(),
                "first": acknowledgement.first,
                "count": acknowledgement.count,
                "path": [node.hex() for node in acknowledgement.path],
                "signer_epoch": acknowledgement.signer_epoch,
                "signature": acknowledgement.signature.hex(),
            },
            **jcs.loads_object(stored.attested),
            "inclusion": {
                "size": proof.size,
                "path": [node.hex() for node in proof.path],
                "leaf_hash": proof.leaf_hash.hex(),
            },
            "checkpoint": proof.checkpoint.decode("utf-8"),
            "ledger": ledger_document(lease),
            "mesh_ca": self._member.identity.ca_certificate.hex(),
        }

    async def _prove(self, index: int) -> ledger_pb2.GetInclusionProofResponse:
        try:
            stub = ledger_pb2_grpc.LedgerServiceStub(await self._ledger.channel(_CALL_SECONDS))
            with remote_errors():
                proof = await stub.GetInclusionProof(
                    ledger_pb2.GetInclusionProofRequest(index=index), timeout=_CALL_SECONDS
                )
        except MeshError as error:
            if error.reason in ("SIZE_NOT_REACHED", "NO_CHECKPOINT"):
                raise NotFound("no checkpoint covers this receipt yet: ask again in a second") from error
            raise LedgerUnavailable(f"the ledger gives no proof now: {error.reason}") from error
        if not proof.checkpoint:
            raise NotFound("no checkpoint covers this receipt yet: ask again in a second")
        return proof


def ledger_document(lease: Lease) -> dict[str, str]:
    """Name a ledger process by what proves it."""
    return {
        "certificate": lease.certificate.der.hex(),
        "evidence_sha256": lease.evidence.digest.hex(),
        "origin": str(lease.appraisal.workload_claims.get("origin")),
    }


class EvidenceDocuments:
    """The evidence documents behind what this router hands out, by digest."""

    def __init__(self, member: Member, documents: KeptDocuments) -> None:
        self._member = member
        self._documents = documents

    async def find(self, digest: str) -> bytes:
        """Return a document: one of now, or one that a receipt rests on. Raises `NotFound`."""
        if not is_hex(digest, 32):
            raise NotFound("evidence digests are 64 lower-case hex digits")
        for evidence in self._member.known_evidence():
            if evidence.digest.hex() == digest:
                return evidence.document
        return await self._documents.find(bytes.fromhex(digest))
