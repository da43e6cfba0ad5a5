"""It is responsible for the entries that say that a log may be pruned: below which entry, and by whose word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.members import Members
from libs.policy.orders import OrderMalformed, SignedOrder, parse_order


class PruneMalformed(MeshError):
    """The body is not an entry's of kind PRUNE."""

    code = Code.INVALID_ARGUMENT
    reason = "PRUNE_MALFORMED"


@dataclass(frozen=True, slots=True)
class PruneOrdered:
    """From this entry on members may be without the bodies of tenants' entries below an index."""

    min_index: int
    policy_version: int
    """Under which the order counted."""
    order: SignedOrder

    def body(self) -> dict[str, Any]:
        authority = {"policy_version": self.policy_version, "order": jcs.loads(self.order.document)}
        return {"min_index": self.min_index, "authority": authority}


def parse_prune(body: Mapping[str, Any]) -> PruneOrdered:
    """Read the body of an entry of kind PRUNE. Raises `PruneMalformed`."""
    members = Members(dict(body), "", PruneMalformed)
    min_index = members.integer("min_index", 1)
    authority = members.object("authority")
    version = authority.integer("policy_version", 1)
    try:
        order = parse_order(jcs.dumps(authority.value("order")))
    except OrderMalformed as error:
        raise authority.refuse("order", f"must be a signed order: {error}") from error
    authority.end()
    members.end()
    return PruneOrdered(min_index, version, order)
