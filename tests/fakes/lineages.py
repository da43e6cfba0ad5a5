"""Stages of pipelines in the log of a mesh without processes: genuine evidence, entries, proofs and signatures."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.client.commitment import LedgerName
from libs.client.lineage import Lineage
from libs.client.logged import LoggedEntry
from libs.events.issuer import Issuer, Sealed
from libs.events.keyset import Keyset, PreviousIssuer
from libs.events.pipeline import Artifact, Stage, Step
from libs.events.records import SALT_SIZE, Entry, commit_to
from libs.identity.certificate import Subject, issue
from libs.transparency import merkle
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind, Leaf
from services.devtee.machine import InstanceIdentity
from tests.fakes.attested_mesh import ORIGIN, TRUST_DOMAIN, WEIGHTS, AttestedMesh, Workload

_OTHERS = 3
CORPUS = bytes.fromhex("c0" * 32)
CLEANED = bytes.fromhex("c1" * 32)
BASE = bytes.fromhex("b0" * 32)
NO_PRIVACY: tuple[dict[str, Any], ...] = (
    {"epsilon": "-1"},
    {"epsilon": "1e3"},
    {"epsilon": "07"},
    {"epsilon": "inf"},
    {"epsilon": 7},
    {"delta": "1.5"},
    {"delta": "0."},
    {"unit": ""},
    {"unit": "two\nlines"},
    {"releases": 0},
    {"releases": True},
    {"releases": "2"},
    {"library": ["opendp"]},
    {"version": None},
    {"more": 1},
)
"""Changes after which a stage's member "privacy" says nothing."""


def with_jobs(mesh: AttestedMesh, role: str = "job") -> AttestedMesh:
    """Have the mesh's policy allow the workload that `Job`s run."""
    compose = jcs.dumps({"manifest_version": 2, "name": f"teemesh-{role}", "teemesh": {"role": role}})
    td = mesh.machine.boot(compose, InstanceIdentity.random(), mesh.now)
    mesh.workloads[role] = Workload(role, td, ec.generate_private_key(ec.SECP256R1()), {})
    return mesh


class Job:
    """One start of a job, and what it logs."""

    def __init__(
        self,
        log: Log,
        *,
        role: str = "job",
        claims: Mapping[str, Any] | None = None,
        ca: ec.EllipticCurvePrivateKey | None = None,
        keyset: Keyset | None = None,
        previous: PreviousIssuer | None = None,
        instance: str = "1",
    ) -> None:
        """`keyset` is what it shows in the place of its own; `previous` the start whose sequence it closes."""
        mesh = log.mesh
        self._log = log
        self.issuer = Issuer(Ed25519PrivateKey.generate())
        evidence = mesh.prove(role, {"log_key": self.issuer.log_key.hex()} if claims is None else claims)
        subject = Subject(TRUST_DOMAIN, role, instance, evidence.digest)
        key = mesh.workloads[role].key.public_key()
        certificate = issue(subject, key, ca or mesh.ca.key, mesh.ca.der, now=mesh.now)
        own = Keyset(self.issuer.spki, self.issuer.boot, certificate, evidence.document, None, previous)
        self.keyset = keyset or own
        self.introduced = log.add(self.issuer, Kind.KEYSET, self.keyset.body())

    def record(self, step: Step, inputs: tuple[Artifact, ...], outputs: tuple[Artifact, ...]) -> bytes:
        """Log a stage; return its id."""
        stage = Stage(step, step.value, inputs, outputs, bytes(32), 1_000, 2_000)
        return self._log.add(self.issuer, Kind.PIPELINE, stage.body())


@dataclass(slots=True)
class Log:
    """A log, as its ledger would show it."""

    mesh: AttestedMesh
    leaves: list[bytes] = field(default_factory=lambda: [bytes([other]) for other in range(_OTHERS)])
    entries: dict[bytes, tuple[int, bytes, bytes]] = field(default_factory=dict)
    """Index, salt and canonical entry, by id."""

    def add(self, issuer: Issuer, kind: Kind, body: Mapping[str, Any]) -> bytes:
        sealed = issuer.seal(kind, body, None)
        return self.put(sealed, Leaf(kind, sealed.issuer_seq, issuer.id, bytes(16), sealed.record.header.commitment))

    def put(self, sealed: Sealed, leaf: Leaf) -> bytes:
        """Log an entry under a leaf that a ledger may have made up."""
        salt, canonical = sealed.record.body[:SALT_SIZE], sealed.record.body[SALT_SIZE:]
        self.entries[sealed.entry_id] = (len(self.leaves), salt, canonical)
        self.leaves.append(leaf.data())
        return sealed.entry_id

    def write(self, entry: Entry) -> bytes:
        """Log an entry under whoever's name it is in, as a ledger can that admits what it likes; return its id."""
        salt, canonical = secrets.token_bytes(SALT_SIZE), entry.canonical()
        name = entry_id(entry.issuer, entry.issuer_seq)
        self.entries[name] = (len(self.leaves), salt, canonical)
        leaf = Leaf(entry.kind, entry.issuer_seq, entry.issuer, bytes(16), commit_to(salt, canonical))
        self.leaves.append(leaf.data())
        return name

    def show(self, entry: bytes) -> LoggedEntry:
        index, salt, canonical = self.entries[entry]
        tree = self._tree()
        path = merkle.inclusion_path(tree, index, len(self.leaves))
        return LoggedEntry(canonical, salt, self.leaves[index], index, tuple(path))

    def lineage(self, stages: list[bytes], jobs: list[Job]) -> Lineage:
        ledger, tree = self.mesh.ledger_name(), self._tree()
        return Lineage(
            gathered_at=self.mesh.now,
            ledger=LedgerName(bytes.fromhex(ledger["certificate"]), ledger["evidence_sha256"], ORIGIN),
            ledger_evidence=self.mesh.evidence["ledger"].document,
            checkpoint=self.mesh.checkpoint(len(self.leaves), merkle.root(tree, len(self.leaves))).encode(),
            stages=tuple(self.show(each) for each in stages),
            keysets=tuple(self.show(job.introduced) for job in jobs),
        )

    def _tree(self) -> merkle.CompleteTree:
        return merkle.CompleteTree([merkle.leaf_hash(leaf) for leaf in self.leaves])


def tuned(mesh: AttestedMesh) -> Lineage:
    """Weights that the mesh serves, fine-tuned by one job on data that another one cleaned."""
    log = Log(with_jobs(mesh))
    cleaner, tuner = Job(log), Job(log)
    cleaned = cleaner.record(Step.DATA_PREPROCESSING, (Artifact("corpus", CORPUS),), (Artifact("cleaned", CLEANED),))
    inputs = (Artifact("cleaned", CLEANED, cleaned), Artifact("base", BASE))
    made = tuner.record(Step.FINE_TUNING, inputs, (Artifact("weights", bytes.fromhex(WEIGHTS)),))
    return log.lineage([made, cleaned], [tuner, cleaner])


def forged(logged: LoggedEntry, **members: Any) -> LoggedEntry:
    """The entry with another body, as whoever forges it can commit to it with another salt and leaf of their own."""
    value = jcs.loads_object(logged.canonical)
    value["body"] = {**value["body"], **members}
    return LoggedEntry(jcs.dumps(value), secrets.token_bytes(SALT_SIZE), logged.leaf_data, logged.index, logged.path)
