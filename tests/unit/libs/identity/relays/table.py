"""The whole table."""

from __future__ import annotations

from tests.unit.libs.identity.relays import (
    certificate_rows,
    connection_rows,
    evidence_rows,
    key_rows,
    kms_rows,
    replication_rows,
)
from tests.unit.libs.identity.relays.row import Row

TABLE: list[Row] = [
    *certificate_rows.ROWS,
    *evidence_rows.ROWS,
    *connection_rows.ROWS,
    *kms_rows.ROWS,
    *replication_rows.ROWS,
    *key_rows.ROWS,
]
