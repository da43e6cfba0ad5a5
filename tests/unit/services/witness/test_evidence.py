"""A log's next key: believed on its ledger's own evidence, under the operators' policy, with a proof of growth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.identity.certificate import pem_of
from libs.policy.revocation import RevocationKind
from libs.transparency import checkpoint
from libs.transparency.add_checkpoint import AddCheckpoint, AddKey, WitnessRequestMalformed, newest_path
from libs.transparency.note import VerifierKey
from services.witness.book import Book
from services.witness.config import AttestedSettings
from services.witness.cosigning import Cosigning, LogKeyNotTrusted, NotConsistent, OldSizeStale, WatchedLog
from services.witness.evidence import KeyEvidence
from services.witness.keys import WitnessKeys
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore

from .conftest import OTHER_KEY, GrowingLog

ORIGIN = f"{TRUST_DOMAIN}/ledger/1"


@dataclasses.dataclass(frozen=True, slots=True)
class Ledger:
    """One start of a ledger: its checkpoint key, and what attests it."""

    key: Ed25519PrivateKey
    certificate: bytes
    evidence: bytes
    spki_sha256: bytes

    def submission(self, kms: KmsCore, request: AddCheckpoint, **changes: Any) -> bytes:
        given = AddKey(request, self.certificate, kms.ca.certificate, self.evidence, (), ())
        return dataclasses.replace(given, **changes).encode()


@asynccontextmanager
async def ledger(
    mesh: JoinedMesh, kms: KmsCore, role: str = "ledger", claims: Mapping[str, Any] | None = None
) -> AsyncIterator[Ledger]:
    key = Ed25519PrivateKey.generate()
    said = {
        "origin": ORIGIN,
        "ack_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
        "checkpoint_key": key.public_key().public_bytes_raw().hex(),
        **(claims or {}),
    }
    async with mesh.member(role, kms, claims=said) as member:
        credential = member.identity.current
        yield Ledger(key, credential.certificate.der, credential.evidence.document, credential.certificate.spki_sha256)


def settings(mesh: JoinedMesh, mesh_ca: Path | None = None) -> AttestedSettings:
    seed = mesh.folder / "witness-seed.json"
    seed.write_bytes(mesh.seed)
    keys = [key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex() for key in mesh.operators]
    return AttestedSettings(TRUST_DOMAIN, tuple(keys), 2, seed, mesh_ca)


@pytest.fixture
def watching(tmp_path: Path, mesh: JoinedMesh, book: Book, witness_keys: WitnessKeys) -> Cosigning:
    return cosigner(tmp_path, mesh, book, witness_keys)


def cosigner(
    folder: Path, mesh: JoinedMesh, book: Book, keys: WitnessKeys, at: float | None = None, ca: Path | None = None
) -> Cosigning:
    evidence = KeyEvidence(folder, ORIGIN, settings(mesh, ca), time.time if at is None else lambda: at)
    return Cosigning(book, keys, {ORIGIN: WatchedLog((), evidence)}, time.time)


async def test_a_key_counts_once_evidence_has_brought_it_and_the_last_one_no_more(
    mesh: JoinedMesh, kms: KmsCore, watching: Cosigning
) -> None:
    log = GrowingLog(ORIGIN).grow(20)
    async with ledger(mesh, kms) as first, ledger(mesh, kms) as second:
        request = log.request(0, 5, first.key)
        with pytest.raises(LogKeyNotTrusted):
            watching.add_checkpoint(request.encode())
        watching.add_key(first.submission(kms, request))
        watching.add_checkpoint(log.request(5, 8, first.key).encode())
        # The ledger has restarted: same log, other key.
        with pytest.raises(LogKeyNotTrusted):
            watching.add_checkpoint(log.request(8, 9, second.key).encode())
        watching.add_key(second.submission(kms, log.request(8, 9, second.key)))
        with pytest.raises(LogKeyNotTrusted):
            watching.add_checkpoint(log.request(9, 10, first.key).encode())
        watching.add_checkpoint(log.request(9, 10, second.key).encode())
    newest = watching.newest(newest_path(ORIGIN))
    assert newest is not None
    verifier = VerifierKey(ORIGIN, second.key.public_key().public_bytes_raw())
    assert checkpoint.verify(newest, verifier).size == 10


async def test_a_genuine_ledger_on_another_disk_gets_no_further_than_its_proof(
    mesh: JoinedMesh, kms: KmsCore, watching: Cosigning
) -> None:
    """Its evidence is good; the history that it was started on is not the one that was cosigned."""
    honest, other = GrowingLog(ORIGIN).grow(9), GrowingLog(ORIGIN, salt=b"other").grow(12)
    async with ledger(mesh, kms) as first, ledger(mesh, kms) as second:
        watching.add_key(first.submission(kms, honest.request(0, 9, first.key)))
        with pytest.raises(OldSizeStale):
            watching.add_key(second.submission(kms, other.request(0, 12, second.key)))
        for size in (10, 12):
            with pytest.raises(NotConsistent):
                watching.add_key(second.submission(kms, other.request(9, size, second.key)))
        # Nor does the key that was refused count, or replace the one that did.
        with pytest.raises(LogKeyNotTrusted):
            watching.add_checkpoint(honest.grow(10).request(9, 10, second.key).encode())
        watching.add_checkpoint(honest.request(9, 10, first.key).encode())


async def test_evidence_that_does_not_say_all_of_it_brings_no_key(
    mesh: JoinedMesh, kms: KmsCore, watching: Cosigning
) -> None:
    log = GrowingLog(ORIGIN).grow(5)
    for role, claims in (
        ("ledger", {"origin": f"{TRUST_DOMAIN}/ledger/2"}),
        ("ledger", {"ack_key": None}),
        ("ledger", {"checkpoint_key": OTHER_KEY.public_key().public_bytes_raw().hex()}),
        ("registry", {}),
    ):
        async with ledger(mesh, kms, role, claims) as refused:
            with pytest.raises(LogKeyNotTrusted):
                watching.add_key(refused.submission(kms, log.request(0, 5, refused.key)))
    assert watching.newest(newest_path(ORIGIN)) is None


async def test_borrowed_evidence_other_measurements_and_other_cas_bring_no_key(
    mesh: JoinedMesh, kms: KmsCore, watching: Cosigning, tmp_path: Path, book: Book, witness_keys: WitnessKeys
) -> None:
    log = GrowingLog(ORIGIN).grow(5)
    async with ledger(mesh, kms) as one, ledger(mesh, kms) as two:
        request = log.request(0, 5, one.key)
        for body in (
            one.submission(kms, log.request(0, 5, OTHER_KEY)),
            one.submission(kms, request, evidence=two.evidence),
            one.submission(kms, request, certificate=two.certificate),
            one.submission(mesh.kms("other", root=b"\x09" * 32), request),
            one.submission(kms, request, certificate=b"", mesh_ca=b""),
        ):
            with pytest.raises(LogKeyNotTrusted):
                watching.add_key(body)
        tampered = one.evidence.replace(ORIGIN.encode(), f"{TRUST_DOMAIN}/ledger/9".encode())
        with pytest.raises(LogKeyNotTrusted):
            watching.add_key(one.submission(kms, request, evidence=tampered))
        pinned = mesh.folder / "ca.pem"
        pinned.write_bytes(pem_of(mesh.kms("other", root=b"\x09" * 32).ca.certificate))
        with pytest.raises(LogKeyNotTrusted, match="MESH_CA_OF_ANOTHER_MESH"):
            cosigner(tmp_path, mesh, book, witness_keys, ca=pinned).add_key(one.submission(kms, request))
        pinned.write_bytes(pem_of(kms.ca.certificate))
        cosigner(tmp_path, mesh, book, witness_keys, ca=pinned).add_key(one.submission(kms, request))


async def test_old_evidence_and_old_policies_bring_no_key(
    mesh: JoinedMesh, kms: KmsCore, tmp_path: Path, book: Book, witness_keys: WitnessKeys
) -> None:
    log = GrowingLog(ORIGIN).grow(5)
    async with ledger(mesh, kms) as one:
        body = one.submission(kms, log.request(0, 5, one.key))
        for later in (3700.0, 8000.0):
            aged = cosigner(tmp_path, mesh, book, witness_keys, time.time() + later)
            with pytest.raises(LogKeyNotTrusted):
                aged.add_key(body)


async def test_a_policy_that_has_ended_brings_no_key(
    mesh: JoinedMesh, kms: KmsCore, tmp_path: Path, book: Book, witness_keys: WitnessKeys
) -> None:
    """Certificate and evidence still hold: it is the operators who have said nothing new."""
    log, now = GrowingLog(ORIGIN).grow(5), time.time()
    async with ledger(mesh, kms) as one:
        mesh.seed = mesh.sign({**mesh.draft, "not_after": int(now) + 60})
        body = one.submission(kms, log.request(0, 5, one.key))
        with pytest.raises(LogKeyNotTrusted, match="POLICY_NOT_VALID_NOW"):
            cosigner(tmp_path, mesh, book, witness_keys, now + 61).add_key(body)
        cosigner(tmp_path, mesh, book, witness_keys, now + 1).add_key(body)


async def test_a_newer_policy_that_comes_along_counts_from_then_on(
    mesh: JoinedMesh, kms: KmsCore, watching: Cosigning, tmp_path: Path, book: Book, witness_keys: WitnessKeys
) -> None:
    log = GrowingLog(ORIGIN).grow(9)
    forbidding = mesh.successor(mesh.keeper("reader").current, roles=mesh.without("ledger"))
    unsigned = mesh.sign({**mesh.draft, "version": 2, "previous": mesh.keeper("reader").current.digest.hex()}, (0,))
    async with ledger(mesh, kms) as one:
        request = log.request(0, 5, one.key)
        with pytest.raises(LogKeyNotTrusted, match="POLICY_SIGNATURES_INSUFFICIENT"):
            watching.add_key(one.submission(kms, request, policies=(unsigned,)))
        with pytest.raises(LogKeyNotTrusted):
            watching.add_key(one.submission(kms, request, policies=(mesh.seed, forbidding)))
        # Leaving it out the next time, or starting the witness anew, does not bring the older one back.
        for each in (watching, cosigner(tmp_path, mesh, book, witness_keys)):
            with pytest.raises(LogKeyNotTrusted):
                each.add_key(one.submission(kms, request))


async def test_a_revocation_that_comes_along_counts(mesh: JoinedMesh, kms: KmsCore, watching: Cosigning) -> None:
    log = GrowingLog(ORIGIN).grow(9)
    async with ledger(mesh, kms) as one:
        request = log.request(0, 5, one.key)
        revoked = mesh.revocation(RevocationKind.KEY, one.spki_sha256.hex())
        with pytest.raises(LogKeyNotTrusted, match="KEY_REVOKED"):
            watching.add_key(one.submission(kms, request, revocations=(revoked,)))
        with pytest.raises(LogKeyNotTrusted, match="KEY_REVOKED"):
            watching.add_key(one.submission(kms, request))


async def test_a_log_of_configured_keys_takes_none_from_evidence(
    mesh: JoinedMesh, kms: KmsCore, book: Book, witness_keys: WitnessKeys
) -> None:
    log = GrowingLog(ORIGIN).grow(5)
    configured = VerifierKey(ORIGIN, OTHER_KEY.public_key().public_bytes_raw())
    fixed = Cosigning(book, witness_keys, {ORIGIN: WatchedLog((configured,), None)}, time.time)
    async with ledger(mesh, kms) as one:
        with pytest.raises(LogKeyNotTrusted, match="configured"):
            fixed.add_key(one.submission(kms, log.request(0, 5, one.key)))


def test_malformed_submissions_are_refused(watching: Cosigning) -> None:
    good = AddKey(GrowingLog(ORIGIN).grow(3).request(0, 3), b"", b"", b"{}", (b"{}",), ()).encode()
    for body in (
        b"",
        b"{}",
        good.replace(b'"v":1', b'"v":2'),
        good.replace(b'"policies":["{}"]', b'"policies":[{}]'),
        good.replace(b'"evidence":"{}"', b'"evidence":{}'),
        good.replace(b'"certificate":""', b'"certificate":"x"'),
        good.replace(b"old 0", b"old 4"),
        good + b" " * (1 << 20),
    ):
        with pytest.raises(WitnessRequestMalformed):
            watching.add_key(body)
