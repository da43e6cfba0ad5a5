"""Responsible for the entries in a message of the log's tail: as they are there, or taken out of whole frames.

Frames are read by the log's second reading, so a reader of the log believes no code of its writer. What a frame cannot
show by itself is that it continues what was read before: the chain does, which is the caller's to follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from teemesh.ledger.v1 import ledger_pb2

from libs.audit.log.findings import BytesWrong
from libs.audit.log.frames import Frame, read_frame, read_header
from libs.errors import Code, MeshError


class FrameBroken(MeshError):
    """A frame of a tail is not what a log writes, or not whole."""

    code = Code.DATA_LOSS
    reason = "TAIL_FRAME_BROKEN"


class FramesUnordered(MeshError):
    """The frames of a tail do not go on from the place that was asked for, each from the one before."""

    code = Code.DATA_LOSS
    reason = "TAIL_FRAMES_UNORDERED"


def entries_of(message: ledger_pb2.TailResponse, next_index: int) -> Sequence[ledger_pb2.LoggedEntry]:
    """Return a message's entries from an index on. Raises `FrameBroken` and `FramesUnordered`.

    Frames MUST end with the head that the message states. That their rows lead there from what was read is not checked.
    """
    if not message.frames:
        return message.entries
    if message.entries:
        raise FramesUnordered("entries come beside frames, and which are first is not said")
    found: list[ledger_pb2.LoggedEntry] = []
    chain = b""
    for data in message.frames:
        frame = _read(data)
        first, end = frame.header.first, frame.header.first + frame.header.count
        at = next_index + len(found)
        if not first <= at < end:
            raise FramesUnordered(f"entry {at} was expected, and a frame of {first} up to {end} came")
        found += _entries(frame, at)
        chain = frame.chain_after
    if chain != message.chain_after:
        raise FrameBroken("the last frame has another chain head than its message")
    return found


def _read(data: bytes) -> Frame:
    try:
        header = read_header(data)
        frame = read_frame(header, data)
        frame.verify_bodies()
    except BytesWrong as error:
        raise FrameBroken(f"a frame is wrong at byte {error.at}: {error.why}") from error
    return frame


def _entries(frame: Frame, start: int) -> Iterator[ledger_pb2.LoggedEntry]:
    """Yield a frame's entries from an index on."""
    rows = zip(frame.leaves(), frame.rows.vaults, frame.bodies(), frame.rows.vault_epochs, strict=True)
    for index, (leaf_data, vault_id, (begin, end), vault_epoch) in enumerate(rows, frame.header.first):
        if index >= start:
            yield ledger_pb2.LoggedEntry(
                index=index,
                leaf_data=leaf_data,
                vault_id=vault_id,
                body=frame.data[begin:end],
                vault_epoch=vault_epoch,
            )
