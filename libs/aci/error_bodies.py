"""Responsible for error bodies as each protocol's clients read them (§10): a type for them, a message for people."""

from __future__ import annotations

import json
from collections.abc import Mapping

from libs.aci.sse import Protocol

_ANTHROPIC_TYPES: Mapping[str, str] = {
    "unauthorized": "authentication_error",
    "tenant_revoked": "permission_error",
    "not_found": "not_found_error",
    "rate_limited": "rate_limit_error",
    "request_timeout": "timeout_error",
    "internal_error": "api_error",
    "upstream_error": "api_error",
    "service_unavailable": "overloaded_error",
}
"""What Anthropic's clients know under another name. The types that ACI and E2EE v2 define keep their own (§10)."""


def error_type_in(protocol: Protocol, error_type: str) -> str:
    """Return the protocol's name for an error's type."""
    return _ANTHROPIC_TYPES.get(error_type, error_type) if protocol is Protocol.MESSAGES else error_type


def error_body(error_type: str, message: str, protocol: Protocol = Protocol.CHAT) -> bytes:
    """Return the JSON body. The message MUST hold no secret and nothing of a prompt.

    Anthropic's form is that of §10 with a member more, so who reads the one reads the other.
    """
    error = {"message": message, "type": error_type_in(protocol, error_type), "code": None, "param": None}
    outer = {"type": "error"} if protocol is Protocol.MESSAGES else {}
    return json.dumps({**outer, "error": error}, separators=(",", ":")).encode("utf-8")
