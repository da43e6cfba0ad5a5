"""It is responsible for how an error crosses the wire: `google.rpc.Status` with an `ErrorInfo`, and back.

A client branches on `ErrorInfo.reason` in the domain "teemesh"; the message is for people.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from libs.errors import Code, MeshError

DOMAIN = "teemesh"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
# Trailing metadata shares gRPC's 16 KiB with everything else a call carries, and the message is sent twice.
_MESSAGE_LIMIT = 1024


class RemoteRefused(MeshError):
    """Another service refused a call; `code` and `reason` are the ones that it gave."""

    code = Code.INTERNAL
    reason = "REMOTE_REFUSED"

    def __init__(self, code: Code, reason: str, message: str) -> None:
        super().__init__(message)
        # Shadows the class's own: a refusal keeps the reason that its author gave it.
        vars(self).update(code=code, reason=reason)


def status_of(error: MeshError) -> status_pb2.Status:
    """Return the wire form of an error."""
    status = _status(grpc.StatusCode[error.code], error.reason, str(error)[:_MESSAGE_LIMIT])
    if error.retry_seconds is not None:
        delay = duration_pb2.Duration(seconds=error.retry_seconds)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def internal_status() -> status_pb2.Status:
    """Return what a caller learns about a bug: nothing."""
    return _status(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")


def reason_of(error: grpc.RpcError) -> str | None:
    """Return the stable reason that a failed call carries, if its server is of the mesh and gave one."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return None
    return next((info.reason for info in _error_infos(error) if _REASON.fullmatch(info.reason)), None)


def to_mesh_error(error: grpc.RpcError) -> RemoteRefused:
    """Return a failed call as an error of this service. Without a reason of the mesh, the status code names it."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return RemoteRefused(Code.INTERNAL, Code.INTERNAL, "a call failed without a status")
    name = error.code().name
    code = _CODES.get(name, Code.INTERNAL)
    return RemoteRefused(code, reason_of(error) or name, (error.details() or name)[:_MESSAGE_LIMIT])


@contextmanager
def remote_errors() -> Iterator[None]:
    """Around calls to another service: what fails is raised as an error of this one.

    Closing a channel cancels the calls on it from inside, and whoever awaits one sees `CancelledError` although nobody
    cancelled the task: that is an error too, and must not end a background task as if it had been asked to stop.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise to_mesh_error(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RemoteRefused(Code.UNAVAILABLE, "CHANNEL_CLOSED", "the channel to the service was closed") from error


# What the peer broke off (CANCELLED) may work elsewhere; what it could not name (UNKNOWN) is its bug.
_CODES = {code.value: code for code in Code} | {"CANCELLED": Code.UNAVAILABLE}


def _status(code: grpc.StatusCode, reason: str, message: str) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    return status


def _error_infos(error: grpc.aio.AioRpcError) -> Iterator[error_details_pb2.ErrorInfo]:
    """The details of our domain; whatever a peer sends that does not parse is not a detail."""
    for key, value in error.trailing_metadata() or ():
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    yield info
        except DecodeError:
            continue
