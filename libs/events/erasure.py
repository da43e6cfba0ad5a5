"""Responsible for the entries that say what becomes of a vault: erasure ordered, then done; a hold set, or released;
its tag key given out.

They lie in the public vault and name tenants by their vault alone. Whose word they rest on is in them whole, so that
anyone can verify it under the log's own policies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.events.vault import PUBLIC_VAULT_ID, VAULT_ID_SIZE
from libs.policy.members import Members
from libs.policy.orders import OrderMalformed, SignedOrder, parse_order
from libs.policy.vault_orders import VaultPart

KEY_RETIRED = "retired"
KEY_KEPT = "kept"

_VERSION = 1
_MAX_EPOCH = 2**32 - 1
_ORDERED, _DONE, _HELD, _RELEASED, _GIVEN = "ordered", "done", "held", "released", "tag_key_given"
_STEP = re.compile("|".join((_ORDERED, _DONE, _HELD, _RELEASED, _GIVEN)))
_KEY = re.compile(rf"{KEY_RETIRED}|{KEY_KEPT}|[A-Z][A-Z0-9_]{{0,62}}")


class ErasureMalformed(MeshError):
    """The body is not an entry's of kind ERASURE."""

    code = Code.INVALID_ARGUMENT
    reason = "ERASURE_MALFORMED"


@dataclass(frozen=True, slots=True)
class Authority:
    """By whose word: a signed order, or the policy's own rule."""

    policy_version: int
    """Under which the word counted."""
    order: SignedOrder | None = None
    retention_months: int | None = None
    """How many months policy keeps entries, where that is the word."""

    def members(self) -> dict[str, Any]:
        if self.order is None:
            return {"policy_version": self.policy_version, "retention_months": self.retention_months}
        return {"policy_version": self.policy_version, "order": jcs.loads(self.order.document)}


@dataclass(frozen=True, slots=True)
class ErasureOrdered:
    """From this entry on nothing more is logged in that part of the vault, and nothing in it is opened."""

    part: VaultPart
    last_seq: int
    """The vault's last number when this was written; entries before this one may still have taken later ones."""
    authority: Authority

    def body(self) -> dict[str, Any]:
        return {**_head(_ORDERED, self.part), "last_seq": self.last_seq, "authority": self.authority.members()}


@dataclass(frozen=True, slots=True)
class ErasureDone:
    """The shares are gone."""

    part: VaultPart
    ordered: bytes
    """Entry id of the order, 32 bytes."""
    last_seq: int
    """The vault's last number, for good where the whole vault is erased."""
    checkpoint_size: int
    """Of the signed tree that held every entry of the vault before its shares were destroyed."""
    checkpoint_root: bytes
    keyring_generation: int
    """The first keyring without the shares."""
    key: str
    """What became of the KMS's half: "retired", "kept" for the other months, or the reason why it was refused."""

    def body(self) -> dict[str, Any]:
        return {
            **_head(_DONE, self.part),
            "ordered": self.ordered.hex(),
            "last_seq": self.last_seq,
            "checkpoint": {"size": self.checkpoint_size, "root": self.checkpoint_root.hex()},
            "keyring_generation": self.keyring_generation,
            "key": self.key,
        }


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """From this entry on the vault is held, and nobody may erase any of it; or is not held any more."""

    vault_id: bytes
    held: bool
    policy_version: int
    """Under which the order counted."""
    order: SignedOrder

    def body(self) -> dict[str, Any]:
        head = _head(_HELD if self.held else _RELEASED, VaultPart(self.vault_id, None))
        return {**head, "authority": Authority(self.policy_version, self.order).members()}


@dataclass(frozen=True, slots=True)
class TagKeyGiven:
    """Whom the order names may have the key by which the vault's entries are recognised. It opens none."""

    vault_id: bytes
    policy_version: int
    """Under which the order counted."""
    order: SignedOrder

    def body(self) -> dict[str, Any]:
        head = _head(_GIVEN, VaultPart(self.vault_id, None))
        return {**head, "authority": Authority(self.policy_version, self.order).members()}


ErasureEntry = ErasureOrdered | ErasureDone | HoldChanged | TagKeyGiven


def parse_erasure(body: Mapping[str, Any]) -> ErasureEntry:
    """Read the body of an entry of kind ERASURE. Raises `ErasureMalformed`."""
    members = Members(dict(body), "", ErasureMalformed)
    members.integer("v", _VERSION, _VERSION)
    step = members.text("step", _STEP)
    part = VaultPart(members.octets("vault", VAULT_ID_SIZE), _epoch(members))
    if part.vault_id == PUBLIC_VAULT_ID:
        raise members.refuse("vault", "must be a tenant's")
    entry: ErasureEntry
    if step == _ORDERED:
        entry = ErasureOrdered(part, members.integer("last_seq", 0), _authority(members.object("authority")))
    elif step == _DONE:
        entry = _done(part, members)
    else:
        if part.epoch is not None:
            raise members.refuse("epochs", "must be null: a vault is held whole, and has one tag key")
        authority = _authority(members.object("authority"))
        if authority.order is None:
            raise members.refuse("authority", "must be an order: no rule of the policy does that to a vault")
        if step == _GIVEN:
            entry = TagKeyGiven(part.vault_id, authority.policy_version, authority.order)
        else:
            entry = HoldChanged(part.vault_id, step == _HELD, authority.policy_version, authority.order)
    members.end()
    return entry


def _head(step: str, part: VaultPart) -> dict[str, Any]:
    epochs = None if part.epoch is None else [part.epoch]
    return {"v": _VERSION, "step": step, "vault": part.vault_id.hex(), "epochs": epochs}


def _epoch(members: Members) -> int | None:
    epochs = members.value("epochs")
    if epochs is None:
        return None
    if not isinstance(epochs, list) or len(epochs) != 1 or type(epochs[0]) is not int:
        raise members.refuse("epochs", "must be null for all, or one month's number in a list")
    epoch: int = epochs[0]
    if not 1 <= epoch <= _MAX_EPOCH:
        raise members.refuse("epochs", f"must be from 1 to {_MAX_EPOCH}")
    return epoch


def _authority(members: Members) -> Authority:
    version = members.integer("policy_version", 1)
    if members.has("order"):
        try:
            authority = Authority(version, order=parse_order(jcs.dumps(members.value("order"))))
        except OrderMalformed as error:
            raise members.refuse("order", f"must be a signed order: {error}") from error
    else:
        authority = Authority(version, retention_months=members.integer("retention_months", 1))
    members.end()
    return authority


def _done(part: VaultPart, members: Members) -> ErasureDone:
    checkpoint = members.object("checkpoint")
    done = ErasureDone(
        part=part,
        ordered=members.octets("ordered", 32),
        last_seq=members.integer("last_seq", 0),
        checkpoint_size=checkpoint.integer("size", 1),
        checkpoint_root=checkpoint.octets("root", 32),
        keyring_generation=members.integer("keyring_generation", 1),
        key=members.text("key", _KEY),
    )
    checkpoint.end()
    return done
