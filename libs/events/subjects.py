"""Responsible for NATS names: streams, subjects, message ids and reply inboxes."""

from __future__ import annotations


def stream_name(log_number: int) -> str:
    """Return the stream that feeds one log."""
    return f"LEDGER_{log_number}"


def all_issuers(log_number: int) -> str:
    """Return the wildcard that a log's stream listens to."""
    return f"teemesh.ledger.{log_number}.*"


def issuer_subject(log_number: int, issuer: bytes) -> str:
    """Return the subject that one issuer publishes to."""
    return f"teemesh.ledger.{log_number}.{issuer.hex()}"


def message_id(issuer: bytes, first_seq: int, introduction: str = "") -> str:
    """Return the id under which a batch is published every time, for as long as it follows the same introduction."""
    name = f"{issuer.hex()}-{first_seq}"
    return f"{name}-{introduction}" if introduction else name


def inbox_prefix(role: str) -> str:
    """Return where a role's replies arrive. Only that role may subscribe there."""
    return f"_INBOX_{role}"
