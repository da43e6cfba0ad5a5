"""It is responsible for evidence that a log's keys stand under two histories: one file that proves it to anybody.

Two signed heads of one size need nothing more. For two sizes it holds the root that the larger tree has at the smaller
size, and the path that proves it: that root and the signed one cannot both be of the log's beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from libs.audit.log.entries import EntryWrong, canonical, octets, read_object
from libs.audit.log.notes import Checkpoint, Key, NoteUnreadable, read_checkpoint
from libs.audit.log.tree import PathWrong, verify_consistency
from libs.errors import Code, MeshError

_VERSION = 1
_MEMBERS = {"v", "notes", "keys", "root", "proof"}


class SplitViewUnreadable(MeshError):
    """The bytes are no evidence of a split view."""

    code = Code.INVALID_ARGUMENT
    reason = "SPLIT_VIEW_UNREADABLE"


class SplitViewNotProven(MeshError):
    """The two heads are not of one log, or can both be true."""

    code = Code.PERMISSION_DENIED
    reason = "SPLIT_VIEW_NOT_PROVEN"


@dataclass(frozen=True, slots=True)
class SplitView:
    """Two heads of one log that cannot both be true."""

    smaller: Checkpoint
    larger: Checkpoint
    keys: tuple[Key, ...]
    """By which they are signed. That these are the log's keys is for the reader to know."""
    root: bytes | None = None
    """Of the larger tree, at the smaller one's size; None for two of one size."""
    proof: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        value = {
            "v": _VERSION,
            "notes": [self.smaller.note.decode(), self.larger.note.decode()],
            "keys": [key.text() for key in self.keys],
            "root": None if self.root is None else self.root.hex(),
            "proof": [step.hex() for step in self.proof],
        }
        return canonical({name: value[name] for name in sorted(value)})

    def verify(self, known: Iterable[Key] | None = None) -> tuple[Key, Key]:
        """Return the keys under the two heads. With `known`, both must be among these.

        Raises `SplitViewNotProven` or `NoteUnproven`.
        """
        smaller, larger = self.smaller, self.larger
        if smaller.origin != larger.origin:
            raise SplitViewNotProven(f"the heads are of two logs: {smaller.origin} and {larger.origin}")
        keys = self.keys if known is None else tuple(known)
        signers = smaller.verify(keys), larger.verify(keys)
        if smaller.size == larger.size:
            if smaller.root == larger.root:
                raise SplitViewNotProven("the heads are of one tree")
            return signers
        if self.root is None or self.root == smaller.root:
            raise SplitViewNotProven("the smaller tree is the larger one's beginning, or no other beginning is named")
        try:
            verify_consistency(smaller.size, larger.size, self.proof, self.root, larger.root)
        except PathWrong as error:
            raise SplitViewNotProven(f"the larger tree is not shown to begin otherwise: {error}") from error
        return signers


def read_split_view(data: bytes) -> SplitView:
    """Read a file of evidence, proving nothing. Raises `SplitViewUnreadable`."""
    try:
        value: dict[str, Any] = read_object(data)
        if value.keys() != _MEMBERS or value["v"] != _VERSION:
            raise EntryWrong("it is of another version")
        smaller, larger = (read_checkpoint(note.encode()) for note in value["notes"])
        return SplitView(
            smaller,
            larger,
            tuple(Key.read(text) for text in value["keys"]),
            None if value["root"] is None else octets(value["root"], 32),
            tuple(octets(step, 32) for step in value["proof"]),
        )
    except (EntryWrong, NoteUnreadable, ValueError, TypeError, AttributeError) as error:
        raise SplitViewUnreadable(f"no evidence of a split view: {error}") from error
