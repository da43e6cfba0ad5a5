"""The 69 bytes with which a reader of the log goes on where it stopped, and notices a log that was rolled back."""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from hashlib import sha256

from libs.errors import Code, MeshError

TOKEN_SIZE = 69
_MAC_SIZE = 16
_LAYOUT = struct.Struct(">BI8sQ32s")
_VERSION = 1


class ResumeTokenInvalid(MeshError):
    """The token was not made by this log."""

    code = Code.INVALID_ARGUMENT
    reason = "RESUME_TOKEN_INVALID"


class LogDiverged(MeshError):
    """The log is not an extension of what the token's holder has read: it was rolled back or replaced."""

    code = Code.FAILED_PRECONDITION
    reason = "LOG_DIVERGED"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reader stands: the next index it wants, and the chain head there."""

    next_index: int
    chain: bytes


def seal(position: Position, *, log_id: bytes, key_epoch: int, key: bytes) -> bytes:
    """Return the token of a position. `key` is epoch `key_epoch` of the key `ledger-resume`."""
    body = _LAYOUT.pack(_VERSION, key_epoch, log_id[:8], position.next_index, position.chain)
    return body + _mac(key, body)


def key_epoch(token: bytes) -> int:
    """Return which epoch of the key opens a token. Raises `ResumeTokenInvalid`."""
    if len(token) != TOKEN_SIZE or token[0] != _VERSION:
        raise ResumeTokenInvalid("not a resume token of version 1")
    return int.from_bytes(token[1:5], "big")


def verify(token: bytes, *, log_id: bytes, key: bytes) -> Position:
    """Return the position that this log put into a token. Raises `ResumeTokenInvalid`."""
    key_epoch(token)
    body = token[:-_MAC_SIZE]
    if not hmac.compare_digest(_mac(key, body), token[-_MAC_SIZE:]):
        raise ResumeTokenInvalid("the resume token is not this log's, or its key has ended")
    _, _, log_prefix, next_index, chain = _LAYOUT.unpack(body)
    if log_prefix != log_id[:8]:
        raise ResumeTokenInvalid("the resume token is another log's")
    return Position(next_index, chain)


def verify_extends(position: Position, *, size: int, chain: bytes | None) -> None:
    """Check that a log of `size` leaves, with the head `chain` there, continues a position. Raises `LogDiverged`."""
    if position.next_index > size:
        raise LogDiverged(f"the log has {size} leaves, but the reader has seen {position.next_index}")
    if chain != position.chain:
        raise LogDiverged(f"the log has another history before leaf {position.next_index} than the reader has seen")


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, sha256).digest()[:_MAC_SIZE]
