"""It is responsible for what a log line must not hold: prompts, answers, keys, tokens, and bytes of any kind.

Values are judged by their name and by their look. Numbers pass: a count of tokens is no token. Exceptions keep their
type and place, but their text only where this project or the interpreter wrote it, since a parser quotes what it reads.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from structlog.types import EventDict, WrappedLogger

from libs.errors import MeshError

REDACTED = "[redacted]"

_PRIVATE_WORDS = frozenset(
    {"prompt", "prompts", "messages", "content", "contents", "body", "completion", "completions", "answer", "question"}
    | {"secret", "secrets", "password", "passphrase", "token", "apikey", "authorization", "cookie", "seed", "pem"}
    | {"private", "credential", "credentials"}
)
_PRIVATE_LOOKS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|\Z)"
    r"|\b(?:Bearer|Basic)\s+[\w.~+/=-]+"
    r"|\b(?:sk|tm)-[\w-]{12,}",
    re.IGNORECASE,
)
_TEXT_IS_OURS = (MeshError, OSError, AttributeError, NameError, ImportError)


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Processor: replace what is private in an event, however deep."""
    return {name: _value(name, value) for name, value in event.items()}


def without_exception_text(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Processor: turn `exc_info` into a traceback without texts that may quote what is private."""
    info = event.pop("exc_info", None)
    if not info:
        return event
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else sys.exc_info()[1]
    if error is not None:
        event["exception"] = _traceback(error)
    return event


def _value(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if _is_private(name):
        return REDACTED
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return _PRIVATE_LOOKS.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return {str(key): _value(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_value("", item) for item in value]
    # The standard library's loggers carry their record along; structlog takes it out again.
    return value if name.startswith("_") else _PRIVATE_LOOKS.sub(REDACTED, str(value))


def _is_private(name: str) -> bool:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return not _PRIVATE_WORDS.isdisjoint(words) or "api_key" in name.lower()


def _traceback(error: BaseException) -> str:
    """The chain of exceptions, root cause first, as Python prints it."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        parts.append(_one(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nwhich led to:\n".join(reversed(parts))


def _one(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    text = f": {error}" if isinstance(error, _TEXT_IS_OURS) else ""
    described = f"{frames}{type(error).__qualname__}{text}"
    if isinstance(error, BaseExceptionGroup):
        inner = "\n".join(_traceback(each) for each in error.exceptions)
        return described + "\n" + "\n".join(f"  | {line}" for line in inner.splitlines())
    return described
