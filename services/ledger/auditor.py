"""It is responsible for signing tree heads, in a process of its own: `python -m services.ledger.auditor DIR ORIGIN`.

It alone holds the checkpoint key, born here and never shown. It takes nobody's word for the tree: it reads the
segments' bytes itself and signs only what follows from them and from what was signed before. It begins with the last
segment whose header, with what follows, gives the root of a note: no other leaves before it do. A writer whose memory
went bad, or that was taken over, cannot have a tree head signed that the files do not hold.

Requests and answers are lines of JSON on standard input and output. The process ends with its parent.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.errors import MeshError
from libs.files import write_durably
from libs.process import protect_memory
from libs.transparency import checkpoint, cose_receipt
from libs.transparency.chain import log_id
from libs.transparency.checkpoint import Checkpoint
from services.ledger.storage import frames, records_log, segments
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.damage import LogBroken, LogDamaged
from services.ledger.storage.head import Head
from services.ledger.storage.recovery import CHECKPOINT, CHECKPOINT_WITNESSED, CHECKPOINTS_LOG, read_signed
from services.ledger.storage.segment_files import SegmentFile, list_files, path_of

_DEFAULT = segments.Geometry()
_REMEMBERED = 256
"""How many notes may be waiting for their cosignatures."""


class SizeBelowSigned(MeshError):
    """A larger tree was signed already."""

    reason = "SIZE_BELOW_SIGNED"


class RootDiffers(MeshError):
    """The files hold another tree than the writer says, or than was signed."""

    reason = "ROOT_DIFFERS"


class SizeNotCommitted(MeshError):
    """No commit in the files ends at that size."""

    reason = "SIZE_NOT_COMMITTED"


class NoteNotSigned(MeshError):
    """The note that is asked about is none of those that this process signed last."""

    reason = "NOTE_NOT_SIGNED"


class Auditor:
    """Follows the segments by their bytes."""

    def __init__(
        self,
        directory: Path,
        origin: str,
        sign: Callable[[Checkpoint], bytes],
        sign_receipts: Callable[[Checkpoint], bytes],
        geometry: segments.Geometry = _DEFAULT,
    ) -> None:
        self._directory, self._origin, self._geometry = directory, origin, geometry
        self._sign, self._sign_receipts = sign, sign_receipts
        self._head = Head(origin)
        self._segment, self._offset = 0, 0
        self._signed: Checkpoint | None = None
        self._notes: OrderedDict[int, bytes] = OrderedDict()
        self._log: records_log.RecordsLog | None = None
        self._bare: frozenset[int] = frozenset()
        """Which segments are without the bodies of tenants' entries; none becomes so while the ledger runs."""

    def checkpoint(self, size: int, root: bytes) -> bytes:
        """Return the signed note of the first `size` leaves, which the writer says have this root.

        It IS durable in `checkpoints.log`. Raises `SizeBelowSigned`, `RootDiffers`, `SizeNotCommitted`, `LogDamaged`,
        and `LogBroken`, after which the process MUST end.
        """
        signed_log = self._open()
        if self._signed is not None and size < self._signed.size:
            raise SizeBelowSigned(f"a tree of {self._signed.size} leaves was signed, {size} is less")
        while self._head.size < size:
            self._read_frame()
        if self._head.size != size:
            raise SizeNotCommitted(f"the files have commits that end before and after leaf {size}, none at it")
        own = Checkpoint(self._origin, size, self._head.root())
        if own.root != root or (
            self._signed is not None and self._signed.size == size and self._signed.root != own.root
        ):
            raise RootDiffers(f"the files hold another tree of {size} leaves")
        note = self._sign(own)
        signed_log.append([note])
        self._signed = own
        self._remember(size, note)
        self._release(CHECKPOINT, note)
        return note

    def witnessed(self, cosigned: bytes) -> None:
        """Keep a note of this process with its witnesses' lines, which the caller has verified.

        It IS durable in `checkpoints.log`. Raises `NoteNotSigned`, and `LogBroken`, after which the process MUST end.
        """
        own = self._notes.get(checkpoint.parse(cosigned).size)
        if own is None or not cosigned.startswith(own):
            raise NoteNotSigned("the cosigned note is none of those that were signed last")
        self._open().append([cosigned])
        self._release(CHECKPOINT_WITNESSED, cosigned)

    def receipts(self, size: int) -> bytes:
        """Return the signature of COSE receipts in a tree that was signed. Raises `NoteNotSigned`."""
        note = self._notes.get(size)
        if note is None:
            raise NoteNotSigned(f"no tree of {size} leaves is among those that were signed last")
        return self._sign_receipts(checkpoint.parse(note))

    def _remember(self, size: int, note: bytes) -> None:
        self._notes[size] = note
        if len(self._notes) > _REMEMBERED:
            self._notes.popitem(last=False)

    def _release(self, name: str, note: bytes) -> None:
        try:
            write_durably(self._directory / name, note)
        except OSError as error:
            raise LogBroken(f"{name} could not be written: {error.strerror}") from error

    def _open(self) -> records_log.RecordsLog:
        """Read what earlier processes signed, at the first request: the log may not exist before."""
        if self._log is None:
            signed, path = read_signed(self._directory), self._directory / CHECKPOINTS_LOG
            self._signed = signed.newest
            self._log = records_log.RecordsLog(path, records_log.CHECKPOINTS, signed.end)
            self._bare = frozenset(each.first for each in list_files(self._directory) if each.is_bare)
            if self._signed is not None:
                self._begin_near(self._signed)
        return self._log

    def _begin_near(self, signed: Checkpoint) -> None:
        """Go to a signed tree from its last segment's beginning; where that does not lead there, begin anew."""
        try:
            for segment in reversed(list_files(self._directory)):
                header = self._header_of(segment)
                if header is not None and header.first <= signed.size:
                    self._head.begin_at(header.first, header.peaks, header.chain, header.frame_hash)
                    self._segment, self._offset = header.first, 0
                    break
            while self._head.size < signed.size:
                self._read_frame()
            if (self._head.size, self._head.root()) == (signed.size, signed.root):
                return
        except (LogDamaged, RootDiffers):
            pass  # Where, and what, the reading from the first byte says.
        self._head, self._segment, self._offset = Head(self._origin), 0, 0

    def _header_of(self, segment: SegmentFile) -> segments.Header | None:
        """Return the header of a segment of this log; None for what is not one."""
        try:
            with segment.path.open("rb") as file:
                header = segments.Header.parse(file.read(segments.HEADER_SIZE))
        except (OSError, segments.SegmentMalformed):
            return None
        is_its = header.first == segment.first and header.first.bit_count() == len(header.peaks)
        return header if is_its and header.log_id == log_id(self._origin) else None

    def _read_frame(self) -> None:
        """Verify the next frame's bytes and move over it."""
        name = segments.file_name(self._segment)
        try:
            with path_of(self._directory, self._segment, self._bare).open("rb") as file:
                if self._offset == 0:
                    self._read_header(name, file.read(segments.HEADER_SIZE))
                file.seek(self._offset)
                start = file.read(frames.HEADER_SIZE)
                if start.startswith(segments.SEAL_MAGIC):
                    self._segment, self._offset = self._head.size, 0
                    return
                self._accept(start, file)
        except frames.FrameDamaged as error:
            raise LogDamaged(name, self._offset + error.at, error.why) from error
        except OSError as error:
            raise LogDamaged(name, self._offset, f"it cannot be read: {error.strerror}") from error

    def _read_header(self, name: str, data: bytes) -> None:
        try:
            header = segments.Header.parse(data)
        except segments.SegmentMalformed as error:
            raise LogDamaged(name, 0, str(error)) from error
        mine = (log_id(self._origin), self._head.size, self._head.chain, self._head.frame_hash, self._head.range.peaks)
        if (header.log_id, header.first, header.chain, header.frame_hash, header.peaks) != mine:
            raise LogDamaged(name, 8, "the segment does not continue what comes before it")
        self._offset = segments.HEADER_SIZE

    def _accept(self, start: bytes, file: BinaryIO) -> None:
        header, bare = frames.parse_header(start), self._segment in self._bare
        data = start + frames.read_rest(file, header, bare=bare)
        self._head.accept(frames.parse(header, data, bare=bare), self._geometry.block_leaves)
        self._offset += len(data)
        signed = self._signed
        if signed is None or header.first >= signed.size or self._head.size < signed.size:
            return
        if (self._head.size, self._head.root()) != (signed.size, signed.root):
            raise RootDiffers(f"the files do not hold the tree of {signed.size} leaves that was signed")


def answer(auditor: Auditor, request: bytes) -> bytes:
    """Return the answer to one line: the note, or the reason why there is none."""
    try:
        members = jcs.loads_object(request)
        if "witnessed" in members:
            auditor.witnessed(members["witnessed"].encode())
            return jcs.dumps({"kept": True})
        if "receipts" in members:
            return jcs.dumps({"signature": auditor.receipts(members["receipts"]).hex()})
        note = auditor.checkpoint(members["size"], bytes.fromhex(members["root"]))
    except LogBroken:
        raise
    except MeshError as error:
        return jcs.dumps({"refused": error.reason, "detail": str(error)})
    return jcs.dumps({"note": note.decode()})


def main() -> int:
    """Serve the parent until it closes the pipe."""
    directory, origin = Path(sys.argv[1]), sys.argv[2]
    protect_memory()
    key = Ed25519PrivateKey.generate()
    auditor = Auditor(
        directory, origin, lambda tree: checkpoint.sign(tree, key), lambda tree: cose_receipt.sign(tree, key)
    )
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    output.write(jcs.dumps({"checkpoint_key": key.public_key().public_bytes_raw().hex()}) + b"\n")
    with ending_when_broken(), output:
        for line in sys.stdin.buffer:
            output.write(answer(auditor, line) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
