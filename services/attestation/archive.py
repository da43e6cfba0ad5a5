"""It is responsible for the archive: what appraisals rested on, by digest, for as long as there is room.

Evidence, policies and records are files that are named by the SHA-256 of their content and written whole or not at all.
A record's file is written last and its name says which documents it cites, so a listing is all that a start has to
read, and no record ever cites what was not stored. What is read is hashed again: a file that somebody changed, or a
disk that failed, shows as a document that is not here.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from libs.errors import Code, MeshError
from libs.files import draft_of, write_durably
from libs.identity.exchange import EvidenceUnknown
from libs.policy.document import MAX_POLICY_BYTES
from libs.tee.archived import MAX_RECORD_BYTES, AppraisalRecord, ArchiveMalformed, Bundle
from libs.tee.evidence import MAX_DOCUMENT_BYTES

_EVIDENCE = "evidence"
_POLICIES = "policies"
_RECORDS = "records"
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What keeps a file from being read and says nothing about it."""

_LIMITS = {_EVIDENCE: MAX_DOCUMENT_BYTES, _POLICIES: MAX_POLICY_BYTES, _RECORDS: MAX_RECORD_BYTES}
_OBJECT = re.compile(r"[0-9a-f]{64}")
_RECORD = re.compile(r"([0-9]{12})\.([0-9a-f]{64})\.([0-9a-f]{64})\.([0-9a-f]{64})")
MAX_RECORDS = 100_000
"""However small they are: the index of them is in memory."""

log = structlog.get_logger()


class ArchiveUnavailable(MeshError):
    """What was judged could not be made durable, so the verdict is not given, or nothing can be read now.

    Look at the disk, and at how many files the process may open.
    """

    code = Code.UNAVAILABLE
    reason = "ARCHIVE_UNAVAILABLE"


class AppraisalUnknown(MeshError):
    """The archive holds no record of that digest, or no longer."""

    code = Code.NOT_FOUND
    reason = "APPRAISAL_UNKNOWN"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A stored record, as its file's name describes it."""

    now: int
    record: str
    cites: tuple[tuple[str, str], ...]
    size: int

    @property
    def name(self) -> str:
        return ".".join([f"{self.now:012d}", self.record, *(digest for _, digest in self.cites)])


@dataclass(slots=True)
class _Object:
    """A stored document: how many records cite it, and whether it was seen to be damaged."""

    size: int
    citations: int = 0
    damaged: bool = False


class Archive:
    """The archive of one service. It never blocks the event loop: every method works in a thread."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._files = _Files(folder, limit_bytes)

    async def open(self) -> None:
        """Take stock. MUST come before everything else. Raises `ArchiveUnavailable`."""
        await asyncio.to_thread(self._files.open)

    async def keep(self, bundle: Bundle) -> bytes:
        """Store a record and what it cites; return its digest once all is durable. Raises `ArchiveUnavailable`."""
        return await asyncio.to_thread(self._files.keep, bundle)

    async def holds(self, record_digest: bytes) -> bool:
        """Whether a record is still here, and neither it nor what it cites was seen to be damaged."""
        return await asyncio.to_thread(self._files.holds, record_digest)

    async def evidence(self, digest: bytes) -> bytes:
        """Return an evidence document. Raises `EvidenceUnknown`, `ArchiveUnavailable`."""
        return await asyncio.to_thread(self._files.evidence, digest)

    async def bundle(self, record_digest: bytes) -> bytes:
        """Return a record with what it cites. A damaged record is dropped.

        Raises `AppraisalUnknown`, `EvidenceUnknown` for a damaged document, `ArchiveUnavailable`.
        """
        return await asyncio.to_thread(self._files.bundle, record_digest)


class _Files:
    """The blocking half; its lock makes it safe to call from any thread."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        # By digest of the record, oldest first.
        self._entries: dict[str, _Entry] = {}
        self._objects: dict[tuple[str, str], _Object] = {}
        self._total = 0

    def open(self) -> None:
        with self._lock:
            try:
                for kind in _LIMITS:
                    (self._folder / kind).mkdir(parents=True, exist_ok=True)
                self._take_stock()
                self._make_room()
            except OSError as error:
                raise ArchiveUnavailable(f"the archive in {self._folder} cannot be used: {error}") from error

    def keep(self, bundle: Bundle) -> bytes:
        record, data = bundle.record, bundle.record.encode()
        digest = hashlib.sha256(data).digest()
        cites = ((_EVIDENCE, record.evidence.hex()), (_POLICIES, record.policy.hex()))
        entry = _Entry(record.question.now, digest.hex(), cites, len(data))
        with self._lock:
            if entry.record in self._entries:
                return digest
            try:
                for (kind, name), document in zip(cites, (bundle.evidence, bundle.policy), strict=True):
                    self._put(kind, name, document)
                write_durably(self._folder / _RECORDS / entry.name, data)
            except OSError as error:
                self._drop_uncited()
                raise ArchiveUnavailable(f"an appraisal could not be archived: {error}") from error
            self._enter(entry)
            self._make_room()
        return digest

    def holds(self, record_digest: bytes) -> bool:
        with self._lock:
            entry = self._entries.get(record_digest.hex())
            return entry is not None and not any(self._objects[cited].damaged for cited in entry.cites)

    def evidence(self, digest: bytes) -> bytes:
        with self._lock:
            return self._document(_EVIDENCE, digest.hex())

    def bundle(self, record_digest: bytes) -> bytes:
        with self._lock:
            entry = self._entries.get(record_digest.hex())
            data = None if entry is None else self._read(_RECORDS, entry.name, entry.record)
            if entry is None or data is None:
                if entry is not None:
                    self._drop(entry)  # What it said can be recorded anew.
                raise AppraisalUnknown("no record of that digest here")
            evidence, policy = (self._document(kind, name) for kind, name in entry.cites)
        try:
            return Bundle.of(AppraisalRecord.decode(data), evidence, policy).encode()
        except ArchiveMalformed as error:
            raise AppraisalUnknown(f"the record cannot be given out: {error}") from error

    def _document(self, kind: str, name: str) -> bytes:
        stored = self._objects.get((kind, name))
        data = None if stored is None else self._read(kind, name, name)
        if stored is None or data is None:
            if stored is not None:
                stored.damaged = True  # The next appraisal that cites it writes it again.
            raise EvidenceUnknown("no document of that digest here")
        return data

    def _read(self, kind: str, name: str, digest: str) -> bytes | None:
        """Return a file's content if it is what its name says. Raises `ArchiveUnavailable` where that is not known."""
        try:
            descriptor = os.open(self._folder / kind / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                data = file.read(_LIMITS[kind] + 1)
        except OSError as error:
            log.error("an archived file cannot be read", kind=kind, name=name, detail=str(error))
            if error.errno in _PASSING:
                raise ArchiveUnavailable(f"the archive cannot be read now: {error.strerror}") from error
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            log.error("an archived file is not what its name says", kind=kind, name=name)
            return None
        return data

    def _put(self, kind: str, name: str, document: bytes) -> None:
        stored = self._objects.get((kind, name))
        if stored is not None and not stored.damaged:
            return
        write_durably(self._folder / kind / name, document)
        if stored is None:
            self._objects[kind, name] = _Object(len(document))
            self._total += len(document)
        else:
            self._total += len(document) - stored.size
            stored.size, stored.damaged = len(document), False

    def _enter(self, entry: _Entry) -> None:
        self._entries[entry.record] = entry
        self._total += entry.size
        for cited in entry.cites:
            self._objects[cited].citations += 1

    def _make_room(self) -> None:
        """Let the oldest records go until the rest fits; the newest one always stays."""
        while len(self._entries) > 1 and (self._total > self._limit_bytes or len(self._entries) > MAX_RECORDS):
            self._drop(next(iter(self._entries.values())))

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.record]
        self._remove(_RECORDS, entry.name)
        self._total -= entry.size
        for cited in entry.cites:
            self._objects[cited].citations -= 1
            self._drop_if_uncited(cited)

    def _drop_uncited(self) -> None:
        for cited in list(self._objects):
            self._drop_if_uncited(cited)

    def _drop_if_uncited(self, cited: tuple[str, str]) -> None:
        if not self._objects[cited].citations:
            self._total -= self._objects.pop(cited).size
            self._remove(*cited)

    def _remove(self, kind: str, name: str) -> None:
        try:
            (self._folder / kind / name).unlink(missing_ok=True)
        except OSError as error:
            log.error("an archived file cannot be removed", kind=kind, name=name, detail=str(error))

    def _take_stock(self) -> None:
        """Read the listings. Drafts of a torn write, and what no record cites, go; foreign files are left alone."""
        for kind in (_EVIDENCE, _POLICIES):
            for name, size in self._listed(kind):
                if _OBJECT.fullmatch(name):
                    self._objects[kind, name] = _Object(size)
                    self._total += size
        for name, size in sorted(self._listed(_RECORDS)):
            parts = _RECORD.fullmatch(name)
            if parts is None:
                continue
            entry = _Entry(int(parts[1]), parts[2], ((_EVIDENCE, parts[3]), (_POLICIES, parts[4])), size)
            if entry.record in self._entries or any(cited not in self._objects for cited in entry.cites):
                log.error("an archived record lacks what it cites", record=entry.record)
                self._remove(_RECORDS, name)
            else:
                self._enter(entry)
        self._drop_uncited()

    def _listed(self, kind: str) -> Iterator[tuple[str, int]]:
        for item in os.scandir(self._folder / kind):
            status = item.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                log.warning("a foreign file in the archive is passed over", kind=kind, name=item.name)
            elif draft_of(item.name) is not None:
                self._remove(kind, item.name)
            elif status.st_size <= _LIMITS[kind]:
                yield item.name, status.st_size
