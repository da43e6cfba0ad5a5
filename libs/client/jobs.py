"""Responsible for who a stage's job is: an issuer of the log whose keyset shows it to be an allowed job of this mesh.

Pure, as `lineage` is, which judges what jobs say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from libs.client.commitment import spki_of
from libs.errors import Code, MeshError
from libs.events.keyset import Keyset
from libs.events.records import Entry
from libs.identity.certificate import parse, verify_issued
from libs.identity.lease import appraise_peer
from libs.policy.document import Policy
from libs.policy.vocabulary import JOB
from libs.tee import evidence as evidences


class JobNotAttested(MeshError):
    """What ran the stage is not shown to be a job of this mesh, with this log key."""

    code = Code.PERMISSION_DENIED
    reason = "JOB_NOT_ATTESTED"


class JobEndedBefore(MeshError):
    """A later start of the same job had closed the sequence before the stage's number: its log key counts no more."""

    code = Code.PERMISSION_DENIED
    reason = "JOB_ENDED_BEFORE"


@dataclass(frozen=True, slots=True)
class AttestedJob:
    """One start of a job that policy allows."""

    spiffe_id: str
    compose_hash: str
    log_key: Ed25519PublicKey
    """What it signs its stages with."""


def verify_job(keyset: Keyset, entry: Entry, policy: Policy, mesh_ca: bytes) -> AttestedJob:
    """Prove that the issuer which an entry names is a job of this mesh, which policy allows. `mesh_ca` is DER.

    Whether it signed the entry is not judged here. It is judged as of when its evidence was made: its certificate has
    ended long since. Raises `JobNotAttested`, `CertificateNotAccepted`, and what the evidence is refused for.
    """
    if keyset.issuer != entry.issuer:
        raise JobNotAttested("the keyset is of another log key, or of another start")
    issued_at = evidences.parse(keyset.evidence).challenge.issued_at
    moment = max(issued_at, parse(keyset.certificate).not_before)
    certificate = verify_issued(keyset.certificate, mesh_ca, moment)
    if (certificate.role, certificate.trust_domain) != (JOB, policy.trust_domain):
        raise JobNotAttested(f"{certificate.spiffe_id} is no job of {policy.trust_domain}")
    lease = appraise_peer(certificate, keyset.evidence, policy, spki_of(mesh_ca), moment)
    log_key = _log_key(keyset.spki)
    if lease.appraisal.workload_claims.get("log_key") != log_key.public_bytes_raw().hex():
        raise JobNotAttested("the job's evidence names another log key")
    return AttestedJob(certificate.spiffe_id, lease.appraisal.measurement.compose_hash, log_key)


def verify_not_ended(job: AttestedJob, entry: Entry, shown: Iterable[Keyset]) -> None:
    """Hold a job's number against what later starts of it say of its sequence, as far as they are shown.

    Raises `JobEndedBefore`, and what a malformed certificate raises.
    """
    for later in shown:
        closed = later.previous
        if closed is None or closed.issuer != entry.issuer or parse(later.certificate).spiffe_id != job.spiffe_id:
            continue
        if entry.issuer_seq > closed.last_seq:
            raise JobEndedBefore(f"a later start of the job closed its sequence at {closed.last_seq}")


def _log_key(spki: bytes) -> Ed25519PublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise JobNotAttested("the job's log key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise JobNotAttested("the job's log key is no Ed25519 key")
    return key
