"""A log's folder as the ledger's own writer makes it, small, with issuers whose keysets need no machine."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from libs import jcs
from libs.events.issuer import Issuer, Sealed
from libs.events.keyset import Keyset, PreviousIssuer
from libs.events.records import FIRST_PREVIOUS
from libs.events.vault import PUBLIC_TAG_KEY, PUBLIC_VAULT_ID, VaultKey, derive_tag_key, leaf_tag
from libs.identity.certificate import EVIDENCE_OID
from libs.transparency import checkpoint
from libs.transparency.chain import log_id
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.note import VerifierKey
from services.ledger.intake.sequencer import Candidate, Sequencer
from services.ledger.storage.description import LogDescription
from services.ledger.storage.frames import Row
from services.ledger.storage.keyring import Keyring, KeyringFile
from services.ledger.storage.records_log import CHECKPOINTS, RecordsLog, read_end
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore

ORIGIN = "mesh.local/ledger/1"
SMALL = Geometry(block_leaves=4, segment_leaves=4, segment_bytes=1 << 30, zeros_ahead=60)
SOURCE = b"\x51" * 16
VAULT = VaultKey(b"\x09" * 16, 671, b"\x02" * 32, "ef" * 16)
TAG_KEY = derive_tag_key(b"\x22" * 32, VAULT.vault_id)
SECOND = 10**9
_BEGAN = 1_800_000_000 * SECOND
_DESCRIPTION = LogDescription(ORIGIN, "LEDGER_1", b"\x01" * 32, (b"\x02" * 32,), 1)
_CA_KEY = ec.generate_private_key(ec.SECP256R1())


class Author(Issuer):
    """One start of a service that writes to the log."""

    def __init__(
        self, role: str, *, instance: str = "1", previous: PreviousIssuer | None = None, origin: str = ORIGIN
    ) -> None:
        super().__init__(Ed25519PrivateKey.generate())
        self.role, self.origin, self._instance = role, origin, instance
        self.ack_key, self.checkpoint_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.keyset = replace(self.attested(), previous=previous)

    def attested(self, *, instance: str | None = None, **claims: str) -> Keyset:
        """Return a keyset of this start with evidence of its own, which claims these, too."""
        said = {"role": self.role, "log_key": self.log_key.hex(), **claims}
        if self.role == "ledger":
            said |= {
                "origin": self.origin,
                "ack_key": self.ack_key.public_key().public_bytes_raw().hex(),
                "checkpoint_key": self.checkpoint_key.public_key().public_bytes_raw().hex(),
            }
        evidence = jcs.dumps({"claims": said})
        spiffe_id = f"spiffe://mesh.local/{self.role}/{instance or self._instance}"
        return Keyset(self.spki, self.boot, _certificate(spiffe_id, evidence), evidence, None, None)

    @property
    def vkey(self) -> VerifierKey:
        return VerifierKey(self.origin, self.checkpoint_key.public_key().public_bytes_raw())

    def introduce(self) -> Candidate:
        return self.entry(Kind.KEYSET, self.keyset.body())

    def entry(self, kind: Kind, body: Mapping[str, Any], vault: VaultKey | None = None) -> Candidate:
        """Return the next entry."""
        self._before = self._previous
        return candidate(self, self.seal(kind, body, vault), kind)

    def start(self) -> Candidate:
        return self.entry(Kind.START, {"epoch": 1, "build": "00", "recovered_size": 0})

    def quarantine(self, issuer: bytes, number: int, reason: str = "VAULT_UNKNOWN") -> Candidate:
        names = {"issuer": issuer.hex(), "issuer_seq": number}
        return self.entry(Kind.QUARANTINE, {**names, "record_sha256": "00" * 32, "reason": reason})

    def conflict(self, issuer: bytes, number: int) -> Candidate:
        names = {"issuer": issuer.hex(), "issuer_seq": number}
        return self.entry(Kind.CONFLICT, {**names, "logged": "00" * 32, "refused": "11" * 32})

    def take_back(self, last: Candidate) -> None:
        """Give the number of the last entry once more, as no honest issuer does."""
        self._last_seq, self._previous = last.issuer_seq - 1, self._before

    def begin_again(self) -> None:
        """Number from 1 again, under the same keys and name, as only a rewritten history does."""
        self._last_seq, self._previous = 0, FIRST_PREVIOUS

    def receipt(self, note: str = "") -> Candidate:
        return self.entry(Kind.RECEIPT, {"note": note}, VAULT)


def candidate(author: Issuer, sealed: Sealed, kind: Kind) -> Candidate:
    header = sealed.record.header
    return Candidate(
        kind,
        author.id,
        sealed.issuer_seq,
        header.commitment,
        header.vault_epoch,
        header.vault_id,
        sealed.record.body,
    )


@dataclass(slots=True)
class WrittenLog:
    """A folder and whoever writes it."""

    folder: Path
    ledger: Author = field(default_factory=lambda: Author("ledger"))
    router: Author = field(default_factory=lambda: Author("router"))
    geometry: Geometry = SMALL
    seconds: float = 0.0
    """On the log's clock, since `began_ns`."""
    began_ns: int = _BEGAN
    tag: Callable[[bytes, int], bytes] = field(default_factory=lambda: tag_of)

    def create(self, description: LogDescription = _DESCRIPTION) -> WrittenLog:
        LogStore.create(self.folder, description)
        return self

    def append(self, *frames: Sequence[Candidate]) -> WrittenLog:
        """Append entries, one frame each."""
        with self._open() as store:
            for candidates in frames:
                self._sequencer(store).append(candidates, SOURCE, *[store.head.source_high + 1] * 2)
        return self

    def force(self, *candidates: Candidate) -> WrittenLog:
        """Append one frame of whatever it is: what a writer does that has been taken over."""
        with self._open() as store:
            numbers = {each.vault_id: store.index.next_vault_seq(each.vault_id) for each in candidates}
            rows = []
            for each in candidates:
                mark = self.tag(each.vault_id, numbers[each.vault_id])
                numbers[each.vault_id] += 1
                public = Leaf(each.kind, each.issuer_seq, each.issuer, mark, each.commitment)
                rows.append(Row(public.data(), each.vault_epoch, each.vault_id, each.body))
            at, epoch = store.head.source_high + 1, store.last_epoch + 1
            data, _, after = store.head.build(
                rows, epoch=epoch, source=SOURCE, source_low=at, source_high=at, wall_ns=self._clock()
            )
            store.append(data, after)
        return self

    def keep_keyring(self) -> WrittenLog:
        """Put a keyring beside the segments, as one is wherever entries are sealed."""
        KeyringFile(self.folder, log_id(self.ledger.origin)).store(Keyring(1, ()), b"\x02" * 32, 1)
        return self

    def sign(self, key: Ed25519PrivateKey | None = None) -> bytes:
        """Sign the tree as the auditor does, and return the note."""
        with self._open() as store:
            tree = Checkpoint(self.ledger.origin, store.head.size, store.head.root())
        return self.sign_tree(tree, key)

    def sign_tree(self, tree: Checkpoint, key: Ed25519PrivateKey | None = None) -> bytes:
        note = checkpoint.sign(tree, key or self.ledger.checkpoint_key)
        path = self.folder / "checkpoints.log"
        log = RecordsLog(path, CHECKPOINTS, read_end(path, CHECKPOINTS).end)
        log.append([note])
        log.close()
        (self.folder / "checkpoint").write_bytes(note)
        return note

    def files(self) -> dict[str, bytes]:
        """Return what is in the folder, the lock apart."""
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file() and path.name != "LOCK"]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def _open(self) -> LogStore:
        return LogStore(
            self.folder,
            sign=self.ledger.ack_key.sign,
            clock=self._clock,
            index_key=b"\x08" * 32,
            geometry=self.geometry,
        )

    def _sequencer(self, store: LogStore) -> Sequencer:
        return Sequencer(store, epoch=store.last_epoch + 1, tag=self.tag, clock=self._clock)

    def _clock(self) -> int:
        return self.began_ns + int(self.seconds * SECOND)


def rewritten(log: WrittenLog, folder: Path, *frames: Sequence[str]) -> WrittenLog:
    """Return another history by the same keys: receipts of these notes, one frame each, after the introductions."""
    other = WrittenLog(folder, log.ledger, log.router, log.geometry).create()
    for author in (log.ledger, log.router):
        author.begin_again()
    other.append([log.ledger.introduce()], [log.router.introduce()])
    return other.append(*[[log.router.receipt(note) for note in notes] for notes in frames])


def small_log(folder: Path) -> WrittenLog:
    """Nine entries in six frames and three segments, two of them sealed; three signed trees."""
    log = WrittenLog(folder).create()
    ledger, router = log.ledger, log.router
    log.append([ledger.introduce()], [ledger.start()])
    log.sign()
    log.append([router.introduce(), router.receipt("one")], [router.receipt("two")])
    log.sign()
    log.append([router.receipt("three"), router.receipt("four"), router.receipt("five")], [router.receipt("six")])
    log.sign()
    return log


def one_segment(folder: Path) -> WrittenLog:
    """Three entries in three frames of the one segment, the first two signed."""
    log = WrittenLog(folder).create()
    log.append([log.ledger.introduce()], [log.ledger.start()])
    log.sign()
    return log.append([log.ledger.start()])


def sealed_segment(folder: Path) -> WrittenLog:
    """Four entries in a sealed segment, one in the next; all signed."""
    log = WrittenLog(folder).create()
    ledger = log.ledger
    log.append([ledger.introduce()], [ledger.start(), ledger.start(), ledger.start()], [ledger.start()])
    log.sign()
    return log


def tag_of(vault_id: bytes, vault_seq: int) -> bytes:
    return leaf_tag(PUBLIC_TAG_KEY if vault_id == PUBLIC_VAULT_ID else TAG_KEY, vault_seq)


@dataclass(slots=True)
class FilesInMemory:
    """A log's files, to change one byte of and read again."""

    files: dict[str, bytes]

    def segments(self) -> Sequence[str]:
        return sorted(name.removeprefix("seg/") for name in self.files if name.startswith("seg/"))

    def is_bare(self, name: str) -> bool:
        return False

    def open_segment(self, name: str) -> BinaryIO:
        return io.BytesIO(self.files[f"seg/{name}"])

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def open_beside(self, name: str) -> BinaryIO | None:
        return io.BytesIO(self.files[name]) if name in self.files else None


def _certificate(spiffe_id: str, evidence: bytes) -> bytes:
    now = dt.datetime(2027, 1, 15, tzinfo=dt.UTC)
    trust_domain, role, _ = spiffe_id.removeprefix("spiffe://").split("/")
    names = [x509.UniformResourceIdentifier(spiffe_id), x509.DNSName(f"{role}.{trust_domain}")]
    signs = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    digest = b"\x04\x20" + sha256(evidence).digest()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(_CA_KEY.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(x509.UnrecognizedExtension(EVIDENCE_OID, digest), critical=False)
    )
    return builder.sign(_CA_KEY, hashes.SHA256()).public_bytes(Encoding.DER)
