"""C2SP proofs: one text file that shows, without the log at hand, that an entry is in it.

Follows https://c2sp.org/tlog-proof. The extra data of this log's proofs is the entry's leaf data. It is not signed by
itself: it counts once its hash leads to the checkpoint's root.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.transparency import checkpoint as checkpoints
from libs.transparency import leaf as leaves
from libs.transparency import merkle
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import CosignerKey, verify_quorum
from libs.transparency.leaf import Leaf
from libs.transparency.note import VerifierKey

FIRST_LINE = "c2sp.org/tlog-proof@v1"
_MAX_SIZE = 1 << 20
_MAX_PATH = 64


class ProofFileMalformed(MeshError):
    """The file is no proof of the form that this log writes."""

    code = Code.INVALID_ARGUMENT
    reason = "PROOF_FILE_MALFORMED"


@dataclass(frozen=True, slots=True)
class ProofFile:
    """What a proof says. Nothing in it is proven."""

    leaf_data: bytes
    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    """The signed note."""

    def encode(self) -> bytes:
        lines = [FIRST_LINE, f"extra {_base64(self.leaf_data)}", f"index {self.index}", *map(_base64, self.path), ""]
        return "".join(f"{line}\n" for line in lines).encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> ProofFile:
        """Read a proof. Raises `ProofFileMalformed`."""
        head, separator, note = data.partition(b"\n\n")
        if len(data) > _MAX_SIZE or not separator:
            raise ProofFileMalformed("a proof is lines, an empty line, and a checkpoint")
        try:
            first, extra, index, *path = head.decode("ascii").split("\n")
            proof = cls(
                leaf_data=base64.b64decode(extra.removeprefix("extra "), validate=True),
                index=int(index.removeprefix("index ")),
                path=tuple(base64.b64decode(step, validate=True) for step in path),
                checkpoint=note,
            )
        except (ValueError, binascii.Error) as error:
            raise ProofFileMalformed("a proof has a first line, extra data, an index and hashes") from error
        if first != FIRST_LINE or len(proof.path) > _MAX_PATH or proof.encode() != data:
            raise ProofFileMalformed("the proof is not in its one form")
        return proof


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof proved."""

    leaf: Leaf
    index: int
    checkpoint: Checkpoint
    witnesses: tuple[str, ...]
    """Who cosigned the checkpoint, of those that were asked about."""


def verify(data: bytes, key: VerifierKey, witnesses: Sequence[CosignerKey] = (), quorum: int = 0) -> Proven:
    """Prove that the log whose key this is had the entry, and that `quorum` of the witnesses saw that tree.

    Raises `ProofFileMalformed`, `LeafMalformed`, `ProofInvalid`, `QuorumNotReached`, and what the checkpoint is refused
    with.
    """
    proof = ProofFile.parse(data)
    tree = checkpoints.verify(proof.checkpoint, key)
    hashed = merkle.leaf_hash(proof.leaf_data)
    merkle.verify_inclusion(hashed, proof.index, tree.size, proof.path, tree.root)
    return Proven(leaves.parse(proof.leaf_data), proof.index, tree, verify_quorum(proof.checkpoint, witnesses, quorum))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
