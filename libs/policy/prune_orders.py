"""It is responsible for orders to prune a log: to take the bodies of old entries of tenants out of its members' files.

What is taken out is in archives then, or could be opened by nobody. Still a reader finds less than before, so m of n
operators order it. An order names the log and the first entry that stays whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.orders import PRUNE_LOG, Order, verify_order

_SUBJECT = re.compile(r"([!-+\--~]{1,400}),([1-9][0-9]{0,15})")


class PruneSubjectMalformed(MeshError):
    """The order's subject is not a log and an index of it."""

    code = Code.INVALID_ARGUMENT
    reason = "PRUNE_SUBJECT_MALFORMED"


@dataclass(frozen=True, slots=True)
class Pruning:
    """What is ordered."""

    origin: str
    min_index: int
    """The first entry whose body stays."""

    @property
    def subject(self) -> str:
        """How an order names it."""
        return f"{self.origin},{self.min_index}"


def pruning_of(order: Order) -> Pruning:
    """Return what an order is about. Raises `PruneSubjectMalformed`."""
    subject = _SUBJECT.fullmatch(order.subject)
    if subject is None:
        raise PruneSubjectMalformed("the subject is a log's origin and, after a comma, the first index that stays")
    return Pruning(subject[1], int(subject[2]))


def verify_pruning(signed: bytes, policy: Policy, now: float) -> Pruning:
    """Return what m of n operators of the policy ordered. Raises what `verify_order` does, and
    `PruneSubjectMalformed`.
    """
    return pruning_of(verify_order(signed, PRUNE_LOG, policy, now))
