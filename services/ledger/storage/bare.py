"""It is responsible for bare segments: made of whole ones, verified alone, and made whole again.

A bare segment is its segment without the bodies of tenants' entries. Each row keeps the hash of its body, each frame
the hash over its rows and of the frame before, and the footer the hash of what the whole file held: so nothing in it
can change unnoticed, and no other bodies can be put back. Whatever dies in between, one of the two files is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from libs.files import fsync_dir
from services.ledger.storage import frames, segments
from services.ledger.storage.damage import LogBroken, LogDamaged
from services.ledger.storage.segment_files import BARE, SEGMENTS, SegmentFile

_CHUNK = 1 << 20


def make_bare(directory: Path, first: int) -> None:
    """Take the bodies of tenants' entries out of a sealed segment, which MUST be verified.

    The bare file IS durable, and verified from the disk, before the whole one goes. Raises `LogDamaged`, `LogBroken`.
    """
    name, whole, folder = segments.file_name(first), directory / SEGMENTS, directory / BARE
    draft = (folder / name).with_suffix(".tmp")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        fsync_dir(directory)
        with (whole / name).open("rb") as source, _created(draft) as file:
            for piece in _stripped(source, name):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in verify_bare(SegmentFile(draft, first, is_bare=True)):
            pass
        os.replace(draft, folder / name)
        fsync_dir(folder)
        os.unlink(whole / name)
        fsync_dir(whole)
    except OSError as error:
        raise LogBroken(f"{name} could not be pruned: {error.strerror}") from error


def make_whole(directory: Path, first: int, content: BinaryIO) -> None:
    """Put a segment's file back in the place of its bare one. It IS durable when this returns.

    Raises `LogDamaged` where it is another than the one that was there, and `LogBroken`.
    """
    name, bare, folder = segments.file_name(first), directory / BARE, directory / SEGMENTS
    draft = (folder / name).with_suffix(".tmp")
    try:
        with _created(draft) as file:
            found = _copied(content, file)
            file.flush()
            os.fsync(file.fileno())
        end = _last_bytes(bare / name)
        if (found, _last_bytes(draft)) != (segments.Footer.parse(end).content_hash, end):
            os.unlink(draft)
            raise LogDamaged(name, 0, "what was to be put back is another file than the one that was there")
        os.replace(draft, folder / name)
        fsync_dir(folder)
        os.unlink(bare / name)
        fsync_dir(bare)
    except OSError as error:
        raise LogBroken(f"{name} could not be put back: {error.strerror}") from error


def verify_bare(segment: SegmentFile) -> Iterator[int]:
    """Read a bare segment by and by: yield how many bytes were read since. Raises `LogDamaged` and `OSError`.

    That its footer is the log's is for the caller to know.
    """
    name = segment.path.name
    with segment.path.open("rb", buffering=_CHUNK) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            frame_hash = segments.Header.parse(file.read(segments.HEADER_SIZE)).frame_hash
            read = 0
            while not (start := file.read(frames.HEADER_SIZE)).startswith(segments.SEAL_MAGIC):
                header = frames.parse_header(start)
                data = start + frames.read_rest(file, header, bare=True)
                if header.previous != frame_hash:
                    raise frames.FrameDamaged(80, "the frame does not follow the one before")
                frame_hash = frames.parse(header, data, bare=True).hash
                read += len(data)
                if read >= _CHUNK:
                    yield read
                    read = 0
            footer = segments.Footer.parse(start + file.read(segments.FOOTER_SIZE))
        except (frames.FrameDamaged, segments.SegmentMalformed) as error:
            raise LogDamaged(name, 0, f"it is not what its footer says: {error}") from error
    if frame_hash != footer.frame_hash:
        raise LogDamaged(name, 0, "it is not what its footer says")
    yield read


def _stripped(source: BinaryIO, name: str) -> Iterator[bytes]:
    yield source.read(segments.HEADER_SIZE)
    while not (start := source.read(frames.HEADER_SIZE)).startswith(segments.SEAL_MAGIC):
        try:
            header = frames.parse_header(start)
            data = start + frames.read_rest(source, header, bare=False)
            yield frames.strip(data, frames.parse(header, data))
        except frames.FrameDamaged as error:
            raise LogDamaged(name, source.tell(), error.why) from error
    yield start + source.read()


def _copied(content: BinaryIO, to: BinaryIO) -> bytes:
    """Copy a segment's file; return the hash of what comes before its footer."""
    hashed, kept = segments.ContentHash(), b""
    while chunk := content.read(_CHUNK):
        to.write(chunk)
        kept += chunk
        hashed.update(kept[: -segments.FOOTER_SIZE])
        kept = kept[-segments.FOOTER_SIZE :]
    return hashed.digest()


def _last_bytes(path: Path) -> bytes:
    """Return as much of a file's end as a footer has."""
    with path.open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - segments.FOOTER_SIZE, 0))
        return file.read()


def _created(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")
