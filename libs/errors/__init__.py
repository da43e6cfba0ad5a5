"""The one kind of error that crosses a service's boundary.

Whatever a caller can act on subclasses `MeshError`; anything else is a bug, which the outermost middleware logs and
turns into a bare INTERNAL.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Code(StrEnum):
    """gRPC status codes by name, so that pure code need not import gRPC."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class MeshError(Exception):
    """An error with a stable `reason` (upper snake case) that callers may branch on.

    The message is for people: lower case, says what to do, never holds a secret.
    """

    code: ClassVar[Code] = Code.FAILED_PRECONDITION
    reason: ClassVar[str]
    retry_seconds: int | None = None
    """After which asking again may help; None where nothing is known."""
