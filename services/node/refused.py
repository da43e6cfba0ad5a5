"""Responsible for how a body is refused: the client reads of it in an error of the model's API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from libs.errors import Code, MeshError


class BodyRefused(MeshError):
    """The body cannot be served. The client is told with this HTTP status and type."""

    code = Code.INVALID_ARGUMENT
    reason = "BODY_REFUSED"
    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is said of a request that is not served."""

    status: int
    body: bytes
    """JSON."""
