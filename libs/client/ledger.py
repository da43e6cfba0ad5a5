"""Responsible for the receipt's place in the ledger: the entry is this receipt, its issuer this router, and the log
holds it under keys that the ledger's own evidence names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs import jcs
from libs.client.commitment import Commitment, LedgerName
from libs.client.trust import ROUTER_ROLE
from libs.errors import Code, MeshError
from libs.events.records import Entry, commit_to, parse_entry
from libs.identity import certificate as certificates
from libs.identity.certificate import verify_issued
from libs.policy.document import Policy
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, SignedBy, appraise
from libs.tee.evidence import Evidence
from libs.transparency import checkpoint as checkpoints
from libs.transparency import leaf as leaves
from libs.transparency import merkle
from libs.transparency.acknowledgement import Statement, verify_acknowledgement
from libs.transparency.chain import entry_id, issuer_id, log_id
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind
from libs.transparency.note import VerifierKey

LEDGER_ROLE = "ledger"


class EntryNotThisReceipt(MeshError):
    """The ledger entry holds something else than the receipt that was shown."""

    code = Code.PERMISSION_DENIED
    reason = "ENTRY_NOT_THIS_RECEIPT"


class EntryNotCommitted(MeshError):
    """The leaf commits to another entry, or stands under another name, than the one shown."""

    code = Code.PERMISSION_DENIED
    reason = "ENTRY_NOT_COMMITTED"


class EvidenceNotTheNamedOne(MeshError):
    """The evidence document is not the one that was named by its digest."""

    code = Code.PERMISSION_DENIED
    reason = "EVIDENCE_NOT_THE_NAMED_ONE"


class IssuerNotThisRouter(MeshError):
    """The entry was issued by a process that does not hold this router's receipt key."""

    code = Code.PERMISSION_DENIED
    reason = "ISSUER_NOT_THIS_ROUTER"


class LedgerNotAttested(MeshError):
    """The ledger's certificate or evidence is not this mesh's, or names no usable keys for this log."""

    code = Code.PERMISSION_DENIED
    reason = "LEDGER_NOT_ATTESTED"


class AcknowledgementOfAnotherEntry(MeshError):
    """The ledger acknowledged another entry, or another place in the log."""

    code = Code.PERMISSION_DENIED
    reason = "ACKNOWLEDGEMENT_OF_ANOTHER_ENTRY"


class CheckpointOfAnotherSize(MeshError):
    """The audit path was made for another tree than the checkpoint's."""

    code = Code.PERMISSION_DENIED
    reason = "CHECKPOINT_OF_ANOTHER_SIZE"


@dataclass(frozen=True, slots=True)
class LedgerKeys:
    """The keys that an appraised ledger claims, raw Ed25519, and its log."""

    acknowledgement: bytes
    checkpoint: VerifierKey
    appraisal: Appraisal

    @property
    def log_id(self) -> bytes:
        return log_id(self.checkpoint.name)


def verify_entry(commitment: Commitment, receipt: bytes) -> Entry:
    """Prove that the leaf commits to an entry which holds exactly this receipt.

    Raises `EntryMalformed`, `EntryNotThisReceipt` or `EntryNotCommitted`.
    """
    entry = parse_entry(commitment.entry)
    if entry.kind is not Kind.RECEIPT or jcs.dumps(dict(entry.body)) != jcs.dumps(jcs.loads(receipt)):
        raise EntryNotThisReceipt("the ledger entry holds something else than this receipt")
    leaf = leaves.parse(commitment.leaf_data)
    if commit_to(commitment.salt, commitment.entry) != leaf.commitment:
        raise EntryNotCommitted("the leaf commits to another entry than the one shown")
    names = (entry.kind, entry.issuer, entry.issuer_seq)
    if names != (leaf.kind, leaf.issuer, leaf.issuer_seq):
        raise EntryNotCommitted("entry and leaf name different issuers, numbers or kinds")
    stated = (commitment.issuer, commitment.issuer_seq, commitment.entry_id)
    if stated != (entry.issuer, entry.issuer_seq, entry_id(entry.issuer, entry.issuer_seq)):
        raise EntryNotCommitted("the entry's id, issuer or number is stated wrongly")
    return entry


def verify_issuer(
    commitment: Commitment, document: bytes, receipt_key: bytes, policy: Policy, ca: bytes, served_at: int
) -> Appraisal:
    """Prove that the entry's issuer is the router process that holds the receipt key, as of when it served, or when its
    evidence began if that was later: a stream outlasts evidence.

    One measured process claims both its log key and its receipt keys in one quote: the newest keyset's, and those of
    earlier ones that it still honoured. Raises `EvidenceNotTheNamedOne`,
    `IssuerNotThisRouter` or what the evidence is refused for.
    """
    evidence = _named(document, commitment.issuer_evidence_sha256, ROUTER_ROLE)
    appraisal = _appraise(evidence, ROUTER_ROLE, policy, ca, max(served_at, evidence.challenge.issued_at))
    claims = appraisal.workload_claims
    earlier = claims.get("earlier_receipt_keys", [])
    if receipt_key.hex() not in (claims.get("receipt_key"), *(earlier if isinstance(earlier, list) else [])):
        raise IssuerNotThisRouter("the issuer's evidence names another receipt key than the one that signed")
    try:
        log_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(claims["log_key"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IssuerNotThisRouter("the issuer's evidence names no log key") from error
    spki = log_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if issuer_id(spki, commitment.issuer_boot) != commitment.issuer:
        raise IssuerNotThisRouter("the entry was issued under another log key than the router's")
    return appraisal


def verify_ledger(
    ledger: LedgerName, mesh_ca: bytes, document: bytes, policy: Policy, ca: bytes, now: int
) -> LedgerKeys:
    """Return the keys of the ledger that this certificate and evidence prove. `mesh_ca` is DER, `ca` its SPKI.

    Raises `CertificateNotAccepted`, `EvidenceNotTheNamedOne`, `LedgerNotAttested` or what the evidence is refused for.
    """
    with _known_keys():
        certificate = verify_issued(ledger.certificate, mesh_ca, now)
    if (certificate.role, certificate.trust_domain) != (LEDGER_ROLE, policy.trust_domain):
        raise LedgerNotAttested(f"{certificate.spiffe_id} is not a ledger of {policy.trust_domain}")
    appraisal = _appraise(_named(document, ledger.evidence_sha256, LEDGER_ROLE), LEDGER_ROLE, policy, ca, now)
    if (appraisal.evidence_digest, appraisal.spki_sha256) != (certificate.evidence_digest, certificate.spki_sha256):
        raise LedgerNotAttested("the ledger's certificate names other evidence or another key")
    claims, origin = appraisal.workload_claims, ledger.origin
    if claims.get("origin") != origin or not origin.startswith(f"{policy.trust_domain}/ledger/"):
        raise LedgerNotAttested("the ledger's evidence names another log")
    try:
        acknowledgement, checkpoint = (bytes.fromhex(claims[name]) for name in ("ack_key", "checkpoint_key"))
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerNotAttested("the ledger's evidence names no acknowledgement key or no checkpoint key") from error
    return LedgerKeys(acknowledgement, VerifierKey(origin, checkpoint), appraisal)


def verify_acknowledger(
    commitment: Commitment, document: bytes, policy: Policy, ca: bytes, served_at: int
) -> LedgerKeys:
    """Return the keys of the ledger that acknowledged, as of when the router served, or when that ledger's evidence and
    certificate began if that was later: a stream outlasts ledgers.

    Nothing that ran out before the answer was served counts for it. Raises what `verify_ledger` raises.
    """
    name = commitment.acknowledged_by
    begun = _named(document, name.evidence_sha256, LEDGER_ROLE).challenge.issued_at
    with _known_keys():
        certified = certificates.parse(name.certificate).not_before
    return verify_ledger(name, commitment.mesh_ca, document, policy, ca, max(served_at, begun, certified))


def verify_durable(commitment: Commitment, keys: LedgerKeys) -> Statement:
    """Prove that the ledger acknowledged this very leaf at this index.

    Raises `AcknowledgementInvalid` or `AcknowledgementOfAnotherEntry`.
    """
    statement = verify_acknowledgement(commitment.acknowledgement, keys.acknowledgement, keys.log_id)
    if commitment.acknowledgement.leaf_data != commitment.leaf_data or statement.index != commitment.leaf_index:
        raise AcknowledgementOfAnotherEntry("the ledger acknowledged another leaf, or this one at another index")
    return statement


def verify_included(commitment: Commitment, keys: LedgerKeys) -> Checkpoint:
    """Prove that the leaf is in the tree whose root the ledger's auditor signed.

    Raises `NoteSignatureInvalid`, `CheckpointOfAnotherSize`, `ProofInvalid`, and what a malformed note is refused for.
    """
    checkpoint = checkpoints.verify(commitment.checkpoint, keys.checkpoint)
    if checkpoint.size != commitment.tree_size:
        raise CheckpointOfAnotherSize("the audit path was made for another tree than the checkpoint's")
    leaf_hash = merkle.leaf_hash(commitment.leaf_data)
    if leaf_hash != commitment.leaf_hash:
        raise merkle.ProofInvalid("the proof is about another leaf")
    merkle.verify_inclusion(leaf_hash, commitment.leaf_index, checkpoint.size, commitment.path, checkpoint.root)
    return checkpoint


@contextmanager
def _known_keys() -> Iterator[None]:
    try:
        yield
    except UnsupportedAlgorithm as error:
        raise LedgerNotAttested("the ledger's certificate holds a key of an unknown kind") from error


def _named(document: bytes, digest: str, role: str) -> Evidence:
    if hashlib.sha256(document).hexdigest() != digest:
        raise EvidenceNotTheNamedOne(f"the {role}'s evidence is not the document that was named")
    return evidences.parse(document)


def _appraise(evidence: Evidence, role: str, policy: Policy, ca: bytes, now: int) -> Appraisal:
    context = AppraisalContext(
        now=now,
        spki=None,
        challenge=SignedBy(ca, policy.evidence_max_age_seconds),
        policy_version=policy.version,
    )
    return appraise(evidence, policy.rules(role), context)
