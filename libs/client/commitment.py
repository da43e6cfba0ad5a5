"""Responsible for reading what a router hands out about a receipt in the ledger. Reading proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from libs import jcs
from libs.aci.encoding import Members
from libs.errors import Code, MeshError
from libs.identity import certificate as certificates
from libs.tee import shape
from libs.transparency.acknowledgement import STATEMENT_SIZE, Acknowledgement
from libs.transparency.chain import BOOT_SIZE
from libs.transparency.leaf import LEAF_SIZE


class CommitmentMalformed(MeshError):
    """The document is not the one that the route promises."""

    code = Code.INVALID_ARGUMENT
    reason = "COMMITMENT_MALFORMED"


class MeshCaUnexpected(MeshError):
    """The router names another mesh CA than the one that the client knows."""

    code = Code.PERMISSION_DENIED
    reason = "MESH_CA_UNEXPECTED"


@dataclass(frozen=True, slots=True)
class LedgerName:
    """One start of the ledger, by what proves it. Every start has other keys."""

    certificate: bytes
    """DER."""
    evidence_sha256: str
    origin: str


@dataclass(frozen=True, slots=True)
class Commitment:
    """A ledger entry, its opening, and every proof about it."""

    entry: bytes
    """Canonical, as published."""
    salt: bytes
    issuer: bytes
    issuer_boot: bytes
    """Drawn by the issuer at its start; with its log key it gives the issuer's id."""
    issuer_seq: int
    entry_id: bytes
    leaf_data: bytes
    leaf_index: int
    leaf_hash: bytes
    acknowledgement: Acknowledgement
    tree_size: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    """C2SP signed note."""
    acknowledged_by: LedgerName
    """Whose key signed the acknowledgement, then."""
    ledger: LedgerName
    """Whose key signed the checkpoint, now."""
    issuer_evidence_sha256: str
    mesh_ca: bytes
    """DER."""


def parse(document: bytes) -> Commitment:
    """Read the document. Raises `CommitmentMalformed` or `JsonMalformed`."""
    members = Members(jcs.loads(document), "commitment", CommitmentMalformed)
    try:
        return _read(members)
    except ValueError as error:
        raise CommitmentMalformed(str(error)) from error


def ca_spki(commitment: Commitment, expected_ca: bytes | None) -> bytes:
    """Return the key (SPKI, DER) that signs this mesh's challenges.

    It is the attested router's word, over the pinned connection; the client's own knowledge goes before it. The key
    dates evidence, it does not make it: what is evidence is decided by hardware and policy. Raises
    `CommitmentMalformed` or `MeshCaUnexpected`.
    """
    named = spki_of(commitment.mesh_ca)
    if expected_ca is not None and named != spki_of(expected_ca):
        raise MeshCaUnexpected("the router names another mesh CA than the one expected")
    return named


def spki_of(certificate: bytes) -> bytes:
    """Return the key (SPKI, DER) of a mesh CA's certificate (DER). Raises `CommitmentMalformed`."""
    try:
        return certificates.spki_of(x509.load_der_x509_certificate(certificate).public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CommitmentMalformed("the mesh CA's certificate cannot be read") from error


def _read(members: Members) -> Commitment:
    acknowledgement, inclusion = members.object("acknowledgement"), members.object("inclusion")
    return Commitment(
        entry=members.text("entry").encode(),
        salt=_octets(members, "salt", 32),
        issuer=_octets(members, "issuer", 32),
        issuer_boot=_octets(members, "issuer_boot", BOOT_SIZE),
        issuer_seq=members.integer("issuer_seq"),
        entry_id=_octets(members, "entry_id", 32),
        leaf_data=_octets(members, "leaf_data", LEAF_SIZE),
        leaf_index=members.integer("leaf_index"),
        leaf_hash=_octets(inclusion, "leaf_hash", 32),
        acknowledgement=Acknowledgement(
            statement=_octets(acknowledgement, "statement", STATEMENT_SIZE),
            leaf_data=_octets(acknowledgement, "leaf_data", LEAF_SIZE),
            first=acknowledgement.integer("first"),
            count=acknowledgement.integer("count"),
            path=_path(acknowledgement),
            signer_epoch=acknowledgement.integer("signer_epoch"),
            signature=_octets(acknowledgement, "signature", 64),
        ),
        tree_size=inclusion.integer("size"),
        path=_path(inclusion),
        checkpoint=members.text("checkpoint").encode(),
        acknowledged_by=_ledger(members.object("acknowledged_by")),
        ledger=_ledger(members.object("ledger")),
        issuer_evidence_sha256=members.hex("issuer_evidence_sha256", 32),
        mesh_ca=_octets(members, "mesh_ca"),
    )


def _ledger(members: Members) -> LedgerName:
    return LedgerName(
        certificate=_octets(members, "certificate"),
        evidence_sha256=members.hex("evidence_sha256", 32),
        origin=members.text("origin"),
    )


def _octets(members: Members, name: str, *sizes: int) -> bytes:
    return shape.binary(members.text(name), name, *sizes)


def _path(members: Members) -> tuple[bytes, ...]:
    return tuple(shape.binary(step, "path", 32) for step in members.texts("path"))
