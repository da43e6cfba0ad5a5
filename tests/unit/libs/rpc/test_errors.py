from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from libs.errors import Code, MeshError
from libs.rpc.errors import STATUS_DETAILS_KEY, reason_of, status_of, to_mesh_error


class TooLoud(MeshError):
    code = Code.RESOURCE_EXHAUSTED
    reason = "TOO_LOUD"


def _failure(code: grpc.StatusCode, details: bytes | None) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata() if details is None else grpc.aio.Metadata((STATUS_DETAILS_KEY, details))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details="what was said")


def _foreign(reason: str, domain: str) -> bytes:
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    return status.SerializeToString()


def test_a_reason_crosses_the_wire() -> None:
    failure = _failure(grpc.StatusCode.RESOURCE_EXHAUSTED, status_of(TooLoud("speak up less")).SerializeToString())
    error = to_mesh_error(failure)
    assert (error.code, error.reason, reason_of(failure)) == (Code.RESOURCE_EXHAUSTED, "TOO_LOUD", "TOO_LOUD")


def test_a_long_message_fits_into_metadata() -> None:
    assert len(status_of(TooLoud("x" * 100_000)).SerializeToString()) < 4096


@pytest.mark.parametrize(
    "details",
    [None, b"\xff\xff\xff", _foreign("TOO_LOUD", "elsewhere.example"), _foreign("not a reason", "teemesh")],
    ids=["none", "garbage", "another domain", "not a reason"],
)
def test_without_a_reason_of_the_mesh_the_status_names_the_error(details: bytes | None) -> None:
    failure = _failure(grpc.StatusCode.UNAVAILABLE, details)
    assert reason_of(failure) is None
    assert to_mesh_error(failure).reason == "UNAVAILABLE"


def test_a_cancelled_call_may_work_elsewhere() -> None:
    assert to_mesh_error(_failure(grpc.StatusCode.CANCELLED, None)).code is Code.UNAVAILABLE
