"""Responsible for error bodies as OpenAI's clients read them (§10): a type to branch on, a message for people."""

from __future__ import annotations

import json


def error_body(error_type: str, message: str, code: str | None = None) -> bytes:
    """Return the JSON body. The message MUST hold no secret and nothing of a prompt."""
    error = {"message": message, "type": error_type, "code": code, "param": None}
    return json.dumps({"error": error}, separators=(",", ":")).encode("utf-8")
