"""The ways in which a stored log can be wrong, and the exit code that tells an operator which."""

from __future__ import annotations

from typing import ClassVar

from libs.errors import Code, MeshError


class StoredLogError(MeshError):
    """The log on this disk must not be served or written. The process exits with `exit_status`."""

    code = Code.DATA_LOSS
    exit_status: ClassVar[int]


class LogDamaged(StoredLogError):
    """Bytes that were durable have changed. Nothing is cut: restore the file, or repair from a replica."""

    reason = "LOG_DAMAGED"
    exit_status = 3

    def __init__(self, file: str, offset: int, why: str) -> None:
        super().__init__(f"{file} is damaged at byte {offset}: {why}; restore it, nothing was changed")
        self.file, self.offset = file, offset


class LogRolledBack(StoredLogError):
    """The log is shorter than a size it has promised, or differs from what it has signed."""

    reason = "LOG_ROLLED_BACK"
    exit_status = 4

    def __init__(self, file: str, offset: int, why: str) -> None:
        super().__init__(f"{file} ends or differs at byte {offset}: {why}; repair it from the stream or a replica")
        self.file, self.offset = file, offset


class LogBroken(StoredLogError):
    """A write or a sync failed. The process MUST exit now, without any further acknowledgement.

    Linux marks pages clean after a failed sync, so a second one would succeed without having written anything.
    """

    reason = "LOG_BROKEN"
    exit_status = 70


class LogForked(StoredLogError):
    """A witness has cosigned another history of this log than the one on this disk."""

    reason = "LOG_FORKED"
    exit_status = 6


class LogLocked(StoredLogError):
    """Another process has this log open."""

    code = Code.ABORTED
    reason = "LOG_LOCKED"
    exit_status = 1


class LogMissing(StoredLogError):
    """The folder holds no log."""

    code = Code.NOT_FOUND
    reason = "LOG_MISSING"
    exit_status = 1


class LogExists(StoredLogError):
    """The folder holds a log already."""

    code = Code.ALREADY_EXISTS
    reason = "LOG_EXISTS"
    exit_status = 1
