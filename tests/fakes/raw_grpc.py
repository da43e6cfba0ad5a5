"""Calls of gRPC over HTTP/2, frame by frame: a client that begins them and brings, or reads, what a test says."""

from __future__ import annotations

import base64
import struct

from google.rpc import error_details_pb2, status_pb2
from hyperframe.frame import DataFrame

from tests.fakes.raw_http2 import Answered, Header, RawHttp2

_PATIENT = "1000S"


def head(method: str, *more: Header, key: str | None = None) -> list[Header]:
    """The head of a call that has much time."""
    shown = [] if key is None else [("authorization", f"Bearer {key}")]
    return [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", method),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-timeout", _PATIENT),
        *shown,
        *more,
    ]


def begin(client: RawHttp2, stream_id: int, method: str, key: str | None = None) -> None:
    """Begin a call and bring nothing."""
    client.send(client.head(stream_id, head(method, key=key)))


def bring(client: RawHttp2, stream_id: int, message: bytes) -> None:
    """Bring the message of a call that was begun."""
    data = b"\0" + struct.pack(">I", len(message)) + message
    client.send(DataFrame(stream_id, data, flags=["END_STREAM"]))


def outcome(answered: Answered) -> tuple[int, str | None]:
    """The status with which a call ended, and the mesh's reason for it."""
    details = answered.headers.get("grpc-status-details-bin", "")
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info = error_details_pb2.ErrorInfo()
    reasons = [info.reason for detail in status.details if detail.Unpack(info)]
    return int(answered.headers["grpc-status"]), reasons[0] if reasons else None
