"""It is responsible for the one decision of a witness: whether a checkpoint extends the newest that it cosigned.

The steps and their order are those of https://c2sp.org/tlog-witness; each refusal has the HTTP status given there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import structlog

from libs.errors import Code, MeshError
from libs.transparency import checkpoint as checkpoints
from libs.transparency import merkle
from libs.transparency import note as notes
from libs.transparency.add_checkpoint import AddCheckpoint, AddKey, WitnessRequestMalformed, newest_path
from libs.transparency.checkpoint import Checkpoint, CheckpointMalformed, CheckpointOfAnotherLog
from libs.transparency.cosignature import attach
from libs.transparency.note import NoteMalformed, NoteSignatureInvalid, Signature, VerifierKey
from services.witness.book import Book, Remembered
from services.witness.evidence import KeyEvidence
from services.witness.keys import WitnessKeys

log = structlog.get_logger()


class WitnessRefusal(MeshError):
    """A checkpoint that is not cosigned."""

    status: ClassVar[int]


class OriginUnknown(WitnessRefusal):
    """This witness does not look at that log."""

    code = Code.NOT_FOUND
    reason = "ORIGIN_UNKNOWN"
    status = 404


class LogKeyNotTrusted(WitnessRefusal):
    """No key that counts for the log has signed the checkpoint."""

    code = Code.PERMISSION_DENIED
    reason = "LOG_KEY_NOT_TRUSTED"
    status = 403


class OldSizeStale(WitnessRefusal):
    """The proof begins at another size than the one that was cosigned last."""

    code = Code.ABORTED
    reason = "OLD_SIZE_STALE"
    status = 409

    def __init__(self, size: int) -> None:
        super().__init__(f"the newest checkpoint that was cosigned has {size} leaves")
        self.size = size


class SplitView(WitnessRefusal):
    """The log signed two trees of one size."""

    code = Code.DATA_LOSS
    reason = "SPLIT_VIEW"
    status = 409


class NotConsistent(WitnessRefusal):
    """No proof shows that the tree extends the one that was cosigned last."""

    code = Code.DATA_LOSS
    reason = "NOT_CONSISTENT"
    status = 422


@dataclass(frozen=True, slots=True)
class WatchedLog:
    """A log, and whose keys count for it."""

    verifier_keys: tuple[VerifierKey, ...]
    evidence: KeyEvidence | None


class Cosigning:
    """Cosigns for the logs that it watches. For one thread: judging and remembering are one step."""

    def __init__(
        self, book: Book, keys: WitnessKeys, watched: Mapping[str, WatchedLog], clock: Callable[[], float]
    ) -> None:
        self._book = book
        self._keys = keys
        self._watched = watched
        self._clock = clock

    def add_checkpoint(self, body: bytes) -> Sequence[Signature]:
        """Return this witness's signatures. Raises `WitnessRequestMalformed`, `WitnessRefusal` or `BookBroken`."""
        request = AddCheckpoint.parse(body)
        return self._cosign(request, _tree_of(request), None)

    def add_key(self, body: bytes) -> Sequence[Signature]:
        """Take a log's new key with a checkpoint under it: it counts from then on, in place of the one before.

        Raises what `add_checkpoint` raises.
        """
        submission = AddKey.parse(body)
        tree = _tree_of(submission.request)
        evidence = self._watched_log(tree.origin).evidence
        if evidence is None:
            raise LogKeyNotTrusted("keys of this log are configured, and not taken from evidence")
        try:
            attested = evidence.verify(submission)
        except MeshError as error:
            raise LogKeyNotTrusted(f"the evidence brings no key: {error.reason}: {error}") from error
        return self._cosign(submission.request, tree, attested)

    def newest(self, path: str) -> bytes | None:
        """Return the newest cosigned checkpoint of the log that is shown at this path, if there is any."""
        for origin in self._watched:
            if newest_path(origin) == path and (remembered := self._book.newest(origin)) is not None:
                return remembered.note
        return None

    def _watched_log(self, origin: str) -> WatchedLog:
        if origin not in self._watched:
            raise OriginUnknown(f"this witness does not look at {origin}")
        return self._watched[origin]

    def _cosign(self, request: AddCheckpoint, tree: Checkpoint, attested: VerifierKey | None) -> Sequence[Signature]:
        watched = self._watched_log(tree.origin)
        with self._book.page(tree.origin) as page:
            remembered = page.remembered
            if attested is None and remembered is not None and watched.evidence is not None:
                attested = remembered.attested
            trusted = watched.verifier_keys if attested is None else (*watched.verifier_keys, attested)
            signed = _signed_by(request.note, trusted)
            _verify_extends(request, tree, remembered)
            signatures = self._keys.cosign(tree, int(self._clock()))
            page.following = Remembered(attach(signed, signatures), attested)
        return signatures


def _tree_of(request: AddCheckpoint) -> Checkpoint:
    try:
        tree = checkpoints.parse(request.note)
    except (NoteMalformed, CheckpointMalformed) as error:
        raise WitnessRequestMalformed(f"no checkpoint: {error}") from error
    if request.old > tree.size:
        raise WitnessRequestMalformed(f"the old size {request.old} is above the checkpoint's {tree.size}")
    return tree


def _signed_by(note: bytes, trusted: Sequence[VerifierKey]) -> bytes:
    """Return the note with the line of the first key that counts and has signed it. Raises `LogKeyNotTrusted`."""
    for key in trusted:
        try:
            text = checkpoints.verify(note, key).text()
        except (NoteSignatureInvalid, CheckpointOfAnotherLog):
            continue
        line = next(line for line in notes.parse(note).signatures if (line.name, line.key_id) == (key.name, key.key_id))
        return f"{text}\n{line.line()}".encode()
    raise LogKeyNotTrusted("no key that counts for this log has signed the checkpoint")


def _verify_extends(request: AddCheckpoint, tree: Checkpoint, remembered: Remembered | None) -> None:
    """Raise `OldSizeStale`, `SplitView` or `NotConsistent` unless the tree is the next one, proven so."""
    before = Checkpoint(tree.origin, 0, merkle.EMPTY_ROOT) if remembered is None else remembered.tree
    if request.old != before.size:
        raise OldSizeStale(before.size)
    if tree.size == before.size and tree.root != before.root:
        _tell_of_two(request, remembered)
        raise SplitView(f"the log signed two trees of {tree.size} leaves")
    try:
        merkle.verify_consistency(before.size, tree.size, request.path, before.root, tree.root)
    except merkle.ProofInvalid as error:
        _tell_of_two(request, remembered)
        raise NotConsistent(f"the tree of {tree.size} leaves does not extend the one of {before.size}") from error


def _tell_of_two(request: AddCheckpoint, remembered: Remembered | None) -> None:
    """Both notes are signed by the log: whoever has the two may have caught it."""
    log.error(
        "a checkpoint does not extend the one that was cosigned",
        cosigned=None if remembered is None else remembered.note.decode(),
        refused=request.note.decode(),
    )
