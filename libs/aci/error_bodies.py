"""Responsible for error bodies as each protocol's clients read them (§10): a type for them, a message for people."""

from __future__ import annotations

import json
from collections.abc import Mapping

from libs.aci.sse import Protocol

_ANTHROPIC_TYPES: Mapping[str, str] = {
    "unauthorized": "authentication_error",
    "tenant_revoked": "permission_error",
    "tenant_disabled": "permission_error",
    "key_not_scoped": "permission_error",
    "not_found": "not_found_error",
    "method_not_allowed": "invalid_request_error",
    "misdirected_request": "invalid_request_error",
    "unsupported_media_type": "invalid_request_error",
    "expectation_failed": "invalid_request_error",
    "uri_too_long": "request_too_large",
    "request_headers_too_large": "request_too_large",
    "http_version_not_supported": "invalid_request_error",
    "rate_limited": "rate_limit_error",
    "insufficient_quota": "rate_limit_error",
    "request_timeout": "timeout_error",
    "internal_error": "api_error",
    "upstream_error": "api_error",
    "tenant_constraints_unmet": "api_error",
    "ledger_unavailable": "api_error",
    "keyset_ended": "api_error",
    "service_unavailable": "overloaded_error",
    "overloaded": "overloaded_error",
}
"""What Anthropic's clients know under another name. The types that ACI and E2EE v2 define keep their own (§10)."""


def error_type_in(protocol: Protocol, error_type: str) -> str:
    """Return the protocol's name for an error's type."""
    return _ANTHROPIC_TYPES.get(error_type, error_type) if protocol is Protocol.MESSAGES else error_type


def error_body(error_type: str, message: str, protocol: Protocol = Protocol.CHAT, code: str | None = None) -> bytes:
    """Return the JSON body. The message MUST hold no secret and nothing of a prompt.

    Anthropic's form is that of §10 with a member more, so who reads the one reads the other.
    """
    error = {"message": message, "type": error_type_in(protocol, error_type), "code": code, "param": None}
    outer = {"type": "error"} if protocol is Protocol.MESSAGES else {}
    return json.dumps({**outer, "error": error}, separators=(",", ":")).encode("utf-8")


def as_anthropic(body: bytes) -> bytes:
    """Return an error body in Anthropic's form, untouched where it is in it: type and message of one in OpenAI's form.

    What is in neither form says no more than that the request was refused.
    """
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        members = None
    error = members.get("error") if isinstance(members, dict) else None
    if not isinstance(members, dict) or not isinstance(error, dict):
        return error_body("invalid_request_error", "the request was refused", Protocol.MESSAGES)
    if members.get("type") == "error":
        return body
    named, said = error.get("type"), error.get("message")
    return error_body(
        named if isinstance(named, str) else "invalid_request_error",
        said if isinstance(said, str) else "the request was refused",
        Protocol.MESSAGES,
    )
