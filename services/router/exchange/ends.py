"""Responsible for the names of abnormal ends: why a response did not come, or not to its end, as receipts say it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class End(Enum):
    """Why an exchange ended before its time. The values are what receipts say."""

    CLIENT_DISCONNECTED = "client_disconnected"
    CLIENT_TOO_SLOW = "client_too_slow"
    """The client is there and does not read what it is sent."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The client's own time is over."""
    SHUTDOWN = "shutdown"
    """This router stopped, and the time that it gives running requests was over."""
    UPSTREAM_FAILED = "upstream_failed"
    ANSWER_UNDELIVERABLE = "answer_undeliverable"
    """An answer came, and was too large to be given or could not be encrypted."""
    TENANT_REVOKED = "tenant_revoked"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    INTERNAL_ERROR = "internal_error"


Why = Callable[[], End]
"""Says why whoever reads an exchange stops reading. Asked once it has stopped; only it can know."""
