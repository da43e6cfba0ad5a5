"""Responsible for what an operator decides about receipts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReceiptSettings:
    """The TOML table [receipts]."""

    ledger_seconds: float = 5.0
    """How long the ledger may take to acknowledge a receipt before the response errors, seconds."""
