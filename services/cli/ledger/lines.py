"""It is responsible for saying one log entry in one line: what is public of it, and nothing that was not checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from teemesh.ledger.v1 import ledger_pb2

from libs.errors import MeshError
from libs.events.records import SALT_SIZE, commit_to, parse_entry
from libs.events.vault import PUBLIC_VAULT_ID
from libs.transparency import leaf as leaves
from libs.transparency.leaf import Leaf

_SHOWN_MEMBERS = 4
_SHOWN_LETTERS = 24


@dataclass(frozen=True, slots=True)
class EntryDescription:
    """An entry's public side. `summary` is None for what lies in a tenant's vault."""

    index: int
    leaf: Leaf
    summary: str | None

    def line(self) -> str:
        leaf = self.leaf
        start = f"{self.index:>8}  {leaf.kind.name.lower():<12} {leaf.issuer.hex()[:12]} {leaf.issuer_seq:>6}"
        return f"{start}  {leaf.commitment.hex()[:16]}  {'(sealed)' if self.summary is None else self.summary}"

    def members(self) -> dict[str, Any]:
        leaf = self.leaf
        return {
            "index": self.index,
            "kind": leaf.kind.name.lower(),
            "issuer": leaf.issuer.hex(),
            "issuer_seq": leaf.issuer_seq,
            "commitment": leaf.commitment.hex(),
            "summary": self.summary,
        }


def describe_entry(entry: ledger_pb2.LoggedEntry) -> EntryDescription:
    """Raises `LeafMalformed`. A public body that does not open to its leaf's commitment is said to be damaged."""
    leaf = leaves.parse(entry.leaf_data)
    return EntryDescription(entry.index, leaf, _summary(entry, leaf))


def _summary(entry: ledger_pb2.LoggedEntry, leaf: Leaf) -> str | None:
    if leaf.kind.is_tenants or entry.vault_id not in (PUBLIC_VAULT_ID, b""):
        return None
    salt, canonical = entry.body[:SALT_SIZE], entry.body[SALT_SIZE:]
    if not canonical:
        return "(no body)"
    if commit_to(salt, canonical) != leaf.commitment:
        return "DAMAGED: the body is not the one that the leaf commits to"
    try:
        return _words(parse_entry(canonical).body)
    except MeshError as error:
        return f"DAMAGED: {error.reason}"


def _words(body: Mapping[str, Any]) -> str:
    """A few plain members, each escaped as JSON: an issuer's text must not steer the reader's terminal."""
    plain = [(name, value) for name, value in body.items() if isinstance(value, str | int | bool)]
    return " ".join(f"{json.dumps(name)[1:-1]}={_short(value)}" for name, value in plain[:_SHOWN_MEMBERS])


def _short(value: str | int | bool) -> str:
    text = json.dumps(value)[1:-1] if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN_LETTERS else text[:_SHOWN_LETTERS] + "..."
