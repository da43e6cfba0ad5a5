"""It is responsible for a service's log: one line per event on standard error, which never holds what is private.

The redaction is in `libs.logs.redaction`; it applies to every line, those of the standard library's loggers included.
What anybody may cause is thinned, in `libs.logs.thinning`.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from libs.logs.redaction import redact, without_exception_text
from libs.logs.thinning import Thinning


def configure(service: str, instance: str, *, json: bool | None = None) -> None:
    """Send this process's log to standard error: JSON unless that is a terminal, or as `json` says."""
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _naming(service, instance),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        without_exception_text,
        redact,
    ]
    structlog.configure(
        processors=[Thinning(), *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # It tells every request to the guest agent, which is a dozen lines for one certificate.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _naming(service: str, instance: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {**event, "service": service, "instance": instance}

    return add
