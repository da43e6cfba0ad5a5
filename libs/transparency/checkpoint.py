"""C2SP checkpoints: what a log's tree was, signed.

Follows https://c2sp.org/tlog-checkpoint. This log writes no extension lines and accepts none, so that one tree has one
text.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import Code, MeshError
from libs.transparency import note
from libs.transparency.merkle import HASH_SIZE


class CheckpointMalformed(MeshError):
    """The text is not a checkpoint."""

    code = Code.INVALID_ARGUMENT
    reason = "CHECKPOINT_MALFORMED"


class CheckpointOfAnotherLog(MeshError):
    """The checkpoint is signed, but its origin is not the log's that it was wanted of."""

    code = Code.PERMISSION_DENIED
    reason = "CHECKPOINT_OF_ANOTHER_LOG"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree of a log at one size."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin:
            raise CheckpointMalformed("the origin is one line that is not empty")
        if not 0 <= self.size < 2**64 or len(self.root) != HASH_SIZE:
            raise CheckpointMalformed("the size is a u64 and the root a SHA-256 hash")

    def text(self) -> str:
        """Return the text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> bytes:
    """Return the signed note. The key's name is the origin."""
    return note.sign(checkpoint.text(), checkpoint.origin, key)


def parse(signed: bytes) -> Checkpoint:
    """Read a checkpoint without verifying its signatures. Raises `NoteMalformed` or `CheckpointMalformed`."""
    return _from_text(note.parse(signed).text)


def verify(signed: bytes, key: note.VerifierKey) -> Checkpoint:
    """Return what the log whose key this is signed.

    The key's name must be the origin. Raises `NoteMalformed`, `NoteSignatureInvalid`, `CheckpointMalformed` or
    `CheckpointOfAnotherLog`.
    """
    checkpoint = _from_text(note.verify(signed, key))
    if checkpoint.origin != key.name:
        raise CheckpointOfAnotherLog(f"the checkpoint is of {checkpoint.origin}, not of {key.name}")
    return checkpoint


def _from_text(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 4 or lines[3]:
        raise CheckpointMalformed("a checkpoint has three lines")
    origin, size, root, _ = lines
    if not (size.isascii() and size.isdigit()) or len(size) > 20:
        raise CheckpointMalformed("the size is a decimal number")
    try:
        digest = base64.b64decode(root.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CheckpointMalformed("the root is not base64") from error
    checkpoint = Checkpoint(origin, int(size), digest)
    if checkpoint.text() != text:
        raise CheckpointMalformed("the size or the root is not in its one form")
    return checkpoint
