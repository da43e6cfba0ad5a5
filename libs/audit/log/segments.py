"""It is responsible for the fixed parts of a segment file: the header that it begins with, the footer that seals it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from hashlib import sha256

from libs.audit.log.findings import BytesWrong

HEADER_SIZE = 4096
FOOTER_SIZE = 1024
SEAL_MAGIC = b"TMSEAL01"
NO_FOOTER = bytes(32)
_HEADER = struct.Struct(">8sQQ8s32s32s32s32sQQQ")
_HEADER_HASHED = 4064
_MAX_PEAKS = 64
_FOOTER = struct.Struct(">8sQQQQ32s32s32s32sI")
_FOOTER_HASHED = 992
_MAX_BLOCKS = 16
_SIGNED = 688
_SIGNATURE_END = 752
_NAME = re.compile(r"([0-9]{20})\.seg")


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
    peaks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Footer:
    """What a sealed segment says that it holds."""

    number: int
    first: int
    count: int
    length: int
    content_hash: bytes
    chain: bytes
    root: bytes
    frame_hash: bytes
    blocks: tuple[bytes, ...]
    signed: bytes
    """What the seal covers."""
    signature: bytes
    digest: bytes
    """By which the next segment names this one."""


def first_leaf(name: str) -> int | None:
    """Return the leaf that a segment's file name says it begins with; None for another file's name."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def file_name(first: int) -> str:
    return f"{first:020d}.seg"


def read_header(data: bytes) -> Header:
    """Read the first 4,096 bytes. Raises `BytesWrong`."""
    if len(data) < HEADER_SIZE:
        raise BytesWrong(len(data), "the file ends within the segment's header")
    if sha256(data[:_HEADER_HASHED]).digest() != data[_HEADER_HASHED:]:
        raise BytesWrong(0, "the segment's header does not match its hash")
    magic, number, first, reserved, log, footer, chain, frame_hash, epoch, _, count = _HEADER.unpack_from(data)
    end = _HEADER.size + 32 * count
    if magic != b"TMSEG001" or count > _MAX_PEAKS or any(reserved) or data[end:_HEADER_HASHED].strip(b"\0"):
        raise BytesWrong(0, "not a segment of version 1, or reserved bytes that are not zero")
    if count != first.bit_count():
        raise BytesWrong(176, f"a log of {first} leaves has {first.bit_count()} complete subtrees, not {count}")
    return Header(number, first, log, footer, chain, frame_hash, epoch, _hashes(data, _HEADER.size, count))


def read_footer(data: bytes) -> Footer:
    """Read 1,024 bytes; whose seal it is, is not judged here. Raises `BytesWrong`."""
    if len(data) != FOOTER_SIZE or sha256(data[:_FOOTER_HASHED]).digest() != data[_FOOTER_HASHED:]:
        raise BytesWrong(0, "the segment's footer does not match its hash")
    magic, number, first, leaves, length, content, chain, root, frame_hash, count = _FOOTER.unpack_from(data)
    end = _FOOTER.size + 32 * count
    if (
        magic != SEAL_MAGIC
        or count > _MAX_BLOCKS
        or data[end:_SIGNED].strip(b"\0")
        or data[_SIGNATURE_END:_FOOTER_HASHED].strip(b"\0")
    ):
        raise BytesWrong(0, "not a footer of version 1, or reserved bytes that are not zero")
    signed = b"teemesh/seal/v1\x00" + sha256(data[:_SIGNED]).digest()
    blocks = _hashes(data, _FOOTER.size, count)
    signature, digest = data[_SIGNED:_SIGNATURE_END], sha256(data).digest()
    return Footer(number, first, leaves, length, content, chain, root, frame_hash, blocks, signed, signature, digest)


def _hashes(data: bytes, start: int, count: int) -> tuple[bytes, ...]:
    return tuple(data[at : at + 32] for at in range(start, start + 32 * count, 32))
