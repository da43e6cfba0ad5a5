"""Entries about vaults: read as they were written, and nothing else is one."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jsonschema import ValidationError

from libs import jcs
from libs.events.erasure import (
    KEY_KEPT,
    KEY_RETIRED,
    Authority,
    ErasureDone,
    ErasureEntry,
    ErasureMalformed,
    ErasureOrdered,
    HoldChanged,
    TagKeyGiven,
    parse_erasure,
)
from libs.policy.orders import ERASE_VAULT, Order, SignedOrder
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from tests.fakes.entry_schema import require_documented

VAULT = b"\x0a" * 16
ORDER = SignedOrder(Order("mesh.local", ERASE_VAULT, VAULT.hex(), 2**33, "a request")).signed_by(
    Ed25519PrivateKey.from_private_bytes(bytes(32))
)
WHOLE, MONTH = VaultPart(VAULT, None), VaultPart(VAULT, 671)
ENTRIES: tuple[ErasureEntry, ...] = (
    ErasureOrdered(WHOLE, 7, Authority(3, order=ORDER)),
    ErasureOrdered(MONTH, 0, Authority(3, retention_months=24)),
    ErasureDone(WHOLE, b"\x01" * 32, 7, 90, b"\x02" * 32, 4, KEY_RETIRED),
    ErasureDone(MONTH, b"\x01" * 32, 7, 90, b"\x02" * 32, 4, KEY_KEPT),
    ErasureDone(WHOLE, b"\x01" * 32, 7, 90, b"\x02" * 32, 4, "ORDER_EXPIRED"),
    HoldChanged(VAULT, True, 3, ORDER),
    HoldChanged(VAULT, False, 3, ORDER),
    TagKeyGiven(VAULT, 3, ORDER),
)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_read_as_it_was_written(entry: ErasureEntry) -> None:
    require_documented(Kind.ERASURE, entry.body())
    assert parse_erasure(jcs.loads_object(jcs.dumps(entry.body()))) == entry


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_member_must_be_there_and_no_other(entry: ErasureEntry) -> None:
    body = entry.body()
    for name in body:
        with pytest.raises(ErasureMalformed):
            parse_erasure({member: value for member, value in body.items() if member != name})
    with pytest.raises(ErasureMalformed, match="not a known member"):
        parse_erasure({**body, "more": 1})
    with pytest.raises(ValidationError):
        require_documented(Kind.ERASURE, {**body, "more": 1})


@pytest.mark.parametrize(
    ("entry", "changes"),
    [
        (ENTRIES[0], {"v": 2}),
        (ENTRIES[0], {"step": "undone"}),
        (ENTRIES[0], {"vault": "00" * 16}),
        (ENTRIES[0], {"epochs": []}),
        (ENTRIES[0], {"epochs": [671, 672]}),
        (ENTRIES[0], {"epochs": [0]}),
        (ENTRIES[0], {"epochs": [True]}),
        (ENTRIES[0], {"authority": {"policy_version": 3}}),
        (ENTRIES[0], {"authority": {"policy_version": 3, "order": {}}}),
        (ENTRIES[0], {"authority": {"policy_version": 3, "order": "none"}}),
        (ENTRIES[0], {"authority": {"policy_version": 3, "retention_months": 0}}),
        (ENTRIES[2], {"key": "lost"}),
        (ENTRIES[2], {"checkpoint": {"size": 0, "root": "02" * 32}}),
        (ENTRIES[5], {"epochs": [671]}),
        (ENTRIES[5], {"authority": {"policy_version": 3, "retention_months": 24}}),
        (ENTRIES[7], {"epochs": [671]}),
        (ENTRIES[7], {"authority": {"policy_version": 3, "retention_months": 24}}),
    ],
)
def test_what_says_something_else_is_refused(entry: ErasureEntry, changes: dict[str, Any]) -> None:
    with pytest.raises(ErasureMalformed):
        parse_erasure({**entry.body(), **changes})
