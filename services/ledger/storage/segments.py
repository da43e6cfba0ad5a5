"""The fixed parts of a segment file: its name, its header, and the footer that seals it. A segment verifies alone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.errors import Code, MeshError
from libs.transparency.chain import domain
from libs.transparency.merkle import range_root
from libs.transparency.tree import Tree
from services.ledger.storage.head import Head

HEADER_SIZE = 4096
FOOTER_SIZE = 1024
SEAL_MAGIC = b"TMSEAL01"
SUFFIX = ".seg"
NO_FOOTER = bytes(32)
_MAGIC = b"TMSEG001"
_HEADER = struct.Struct(">8sQQ8s32s32s32s32sQQQ")
HEADER_HASHED = 4064
EPOCH_AT = 160
_PEAKS = 64
_FOOTER = struct.Struct(">8sQQQQ32s32s32s32sI")
_FOOTER_BLOCKS = 16
_SIGNED = 688
_FOOTER_HASHED = 992


class SegmentMalformed(MeshError):
    """The bytes are not a segment's header or footer."""

    code = Code.DATA_LOSS
    reason = "SEGMENT_MALFORMED"


class SealInvalid(MeshError):
    """A segment's seal was not made by the key that must have made it."""

    code = Code.PERMISSION_DENIED
    reason = "SEAL_INVALID"


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a log is cut into files. The block is part of the format; only tests have another."""

    block_leaves: int = 65_536
    segment_leaves: int = 1 << 18
    """What the index of the growing segment costs in memory, and a start after a crash in time, goes by this."""
    segment_bytes: int = 1 << 30
    zeros_ahead: int = 4 << 20
    """How far a segment is written with zeros before frames come, in bytes. Syncing them is cheaper than growing."""
    sealed_at_stop: int = 1 << 14
    """From how many leaves on a clean stop seals the last segment, which the next start then need not read. Fewer are
    read within a tenth of a second, and a log that is started often would become very many files."""


@dataclass(frozen=True, slots=True)
class Header:
    """Where a segment begins in its log."""

    number: int
    first: int
    log_id: bytes
    previous_footer: bytes
    chain: bytes
    frame_hash: bytes
    epoch: int
    created_ns: int
    peaks: tuple[bytes, ...]

    def pack(self) -> bytes:
        fixed = _HEADER.pack(
            _MAGIC,
            self.number,
            self.first,
            bytes(8),
            self.log_id,
            self.previous_footer,
            self.chain,
            self.frame_hash,
            self.epoch,
            self.created_ns,
            len(self.peaks),
        )
        body = (fixed + b"".join(self.peaks)).ljust(HEADER_HASHED, b"\0")
        return body + sha256(body).digest()

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Read a header strictly. Raises `SegmentMalformed`."""
        if len(data) != HEADER_SIZE or sha256(data[:HEADER_HASHED]).digest() != data[HEADER_HASHED:]:
            raise SegmentMalformed("the segment's header does not match its hash")
        magic, number, first, _, log, footer, chain, frame_hash, epoch, created_ns, count = _HEADER.unpack_from(data)
        if magic != _MAGIC or count > _PEAKS:
            raise SegmentMalformed("not a segment of version 1")
        peaks = tuple(data[_HEADER.size + 32 * at : _HEADER.size + 32 * (at + 1)] for at in range(count))
        header = cls(number, first, log, footer, chain, frame_hash, epoch, created_ns, peaks)
        if header.pack() != data:
            raise SegmentMalformed("the segment's header has reserved bytes that are not zero")
        return header


@dataclass(frozen=True, slots=True)
class Footer:
    """What a sealed segment holds."""

    number: int
    first: int
    count: int
    length: int
    """Bytes of the file before the footer."""
    content_hash: bytes
    chain: bytes
    root: bytes
    frame_hash: bytes
    blocks: tuple[bytes, ...]
    """Roots of the complete blocks of 65,536 leaves that lie wholly in the segment."""
    signature: bytes

    def pack(self) -> bytes:
        body = self.unsigned() + self.signature
        body = body.ljust(_FOOTER_HASHED, b"\0")
        return body + sha256(body).digest()

    def unsigned(self) -> bytes:
        fixed = _FOOTER.pack(
            SEAL_MAGIC,
            self.number,
            self.first,
            self.count,
            self.length,
            self.content_hash,
            self.chain,
            self.root,
            self.frame_hash,
            len(self.blocks),
        )
        return (fixed + b"".join(self.blocks)).ljust(_SIGNED, b"\0")

    @classmethod
    def parse(cls, data: bytes) -> Footer:
        """Read a footer strictly, without verifying its signature. Raises `SegmentMalformed`."""
        if len(data) != FOOTER_SIZE or sha256(data[:_FOOTER_HASHED]).digest() != data[_FOOTER_HASHED:]:
            raise SegmentMalformed("the segment's footer does not match its hash")
        magic, number, first, leaves, length, content, chain, root, frame_hash, count = _FOOTER.unpack_from(data)
        if magic != SEAL_MAGIC or count > _FOOTER_BLOCKS:
            raise SegmentMalformed("not a segment's footer of version 1")
        blocks = tuple(data[_FOOTER.size + 32 * at : _FOOTER.size + 32 * (at + 1)] for at in range(count))
        signature = data[_SIGNED : _SIGNED + 64]
        footer = cls(number, first, leaves, length, content, chain, root, frame_hash, blocks, signature)
        if footer.pack() != data:
            raise SegmentMalformed("the segment's footer has reserved bytes that are not zero")
        return footer

    def verify(self, ack_public_key: bytes) -> None:
        """Check the seal against the acknowledgement key of its time. Raises `SealInvalid`."""
        try:
            Ed25519PublicKey.from_public_bytes(ack_public_key).verify(self.signature, _statement(self.unsigned()))
        except (InvalidSignature, ValueError) as error:
            raise SealInvalid(f"the seal of segment {self.number} is not by this key") from error


def sign_footer(footer: Footer, sign: Callable[[bytes], bytes]) -> bytes:
    """Return a footer's bytes with its seal. `sign` is the acknowledgement key's."""
    return replace(footer, signature=sign(_statement(footer.unsigned()))).pack()


def footer_hash(footer: bytes) -> bytes:
    """Return the hash by which the next segment names a footer."""
    return sha256(footer).digest()


def file_name(first: int) -> str:
    """Return the name of the segment that begins at a leaf."""
    return f"{first:020d}{SUFFIX}"


def _statement(unsigned: bytes) -> bytes:
    return domain("seal") + sha256(unsigned).digest()


class ContentHash:
    """Hash of a segment's bytes so far."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = sha256()

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def describe(
    number: int, first: int, head: Head, tree: Tree, content: ContentHash, length: int, geometry: Geometry
) -> Footer:
    """Return the unsigned footer of the segment that ends at `head`."""
    block = geometry.block_leaves
    return Footer(
        number=number,
        first=first,
        count=head.size - first,
        length=length,
        content_hash=content.digest(),
        chain=head.chain,
        root=head.root(),
        frame_hash=head.frame_hash,
        blocks=tuple(
            range_root(tree, start, start + block)
            for start in range(-(-first // block) * block, head.size - block + 1, block)
        ),
        signature=bytes(64),
    )
