"""It is responsible for what can happen to a key: a new epoch begins, or the key is refused for ever.

Changes only add: the newest of two epochs wins, and retirement is never undone. So the same changes give the same state
in whichever order they are heard, twice or once, from the log or from another KMS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.members import Members
from libs.policy.releases import KEY_NAME

MAX_EPOCH = 2**32 - 1
_ROTATED = "rotated"
_RETIRED = "retired"
_CHANGES = (_ROTATED, _RETIRED)
_TEXT = re.compile(r"[!-~]{1,300}")


class ChangeMalformed(MeshError):
    """An entry of the log, or a member of the sealed state, is no change of a key."""

    code = Code.DATA_LOSS
    reason = "KEY_CHANGE_MALFORMED"


@dataclass(frozen=True, slots=True)
class Change:
    """One change, as the log has it."""

    name: str
    epoch: int | None
    """The epoch that began; None: the key is retired."""
    at_ms: int
    """Unix milliseconds."""
    kms: str
    """SPIFFE ID of the KMS that made it."""
    cause: str
    """Why: a SPIFFE ID that asked for it, "age", or the digest of the operators' order."""
    policy_version: int
    order: bytes = b""
    """Of a retirement: the operators' signed order."""

    def to_body(self) -> dict[str, Any]:
        """Return the body of the ledger entry."""
        what = {"order": jcs.loads(self.order)} if self.epoch is None else {"epoch": self.epoch}
        return {
            "decision": _RETIRED if self.epoch is None else _ROTATED,
            "name": self.name,
            **what,
            "at_ms": self.at_ms,
            "kms": self.kms,
            "cause": self.cause,
            "policy_version": self.policy_version,
        }


def logged_change(body: Mapping[str, Any]) -> Change | None:
    """Return the change that a logged key decision is; None where it is another. Raises `ChangeMalformed`."""
    return read_change(Members(dict(body), "", ChangeMalformed)) if body.get("decision") in _CHANGES else None


def read_change(members: Members) -> Change:
    """Read what `to_body` returned. Members that are not known are a later version's. Raises the reader's refusal."""
    decision = members.text("decision", re.compile("|".join(_CHANGES)))
    return Change(
        name=members.text("name", KEY_NAME),
        epoch=members.integer("epoch", 2, MAX_EPOCH) if decision == _ROTATED else None,
        at_ms=members.integer("at_ms", 0),
        kms=members.text("kms", _TEXT),
        cause=members.text("cause", _TEXT),
        policy_version=members.integer("policy_version", 1),
        order=_order(members) if decision == _RETIRED else b"",
    )


def _order(members: Members) -> bytes:
    value = members.value("order")
    if not isinstance(value, dict):
        raise members.refuse("order", "must be an object")
    return jcs.dumps(value)
