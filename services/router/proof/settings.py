"""Responsible for what an operator decides about receipts."""

from __future__ import annotations

from dataclasses import dataclass

_DAY_SECONDS = 24 * 3600
_LEAST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ReceiptSettings:
    """The TOML table [receipts]."""

    ledger_seconds: float = 5.0
    """How long the ledger may take to acknowledge a receipt before the response errors, seconds."""
    retain_days: int = 30
    """How long this router hands out a receipt, with what proves it, days: at least one. The log's entry stays."""
    retain_bytes: int = 16 << 30
    """How much they may take on disk with what they rest on, bytes. Where that is less than `retain_days` take, the
    oldest go before their time. Copies of usage take up to a gigabyte beside them, receipts that wait for the ledger
    some 400 MB."""

    def __post_init__(self) -> None:
        if self.retain_days < 1:
            raise ValueError("receipts.retain_days must be at least 1")
        if self.retain_bytes < _LEAST_BYTES:
            raise ValueError(f"receipts.retain_bytes must be at least {_LEAST_BYTES}")

    @property
    def retain_seconds(self) -> int:
        return self.retain_days * _DAY_SECONDS
