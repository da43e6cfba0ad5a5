"""Responsible for the names of what is no request, or is none that may be answered, whichever version of HTTP it is."""

from __future__ import annotations

from typing import ClassVar

from libs.errors import Code, MeshError


class Unreadable(MeshError):
    """This is no request, or one that two readers could take for two."""

    code = Code.INVALID_ARGUMENT
    reason = "REQUEST_UNREADABLE"
    status: ClassVar[int] = 400


class HeadTooLarge(Unreadable):
    """The request's head is over the limit: one field, or all of them together."""

    reason = "HEAD_TOO_LARGE"
    status = 431


class TargetTooLong(Unreadable):
    """The request's target is over the limit."""

    reason = "TARGET_TOO_LONG"
    status = 414


class VersionNotSupported(Unreadable):
    """The request is of a version of HTTP that this listener does not speak."""

    reason = "HTTP_VERSION_NOT_SUPPORTED"
    status = 505
