"""Responsible for which GPUs a node's own receipt names, and for holding them against those of its evidence.

GPUs go by their UEIDs, as the vendor's tokens state them. Which evidence is believed is the caller's to judge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from libs import jcs
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import Generated
from libs.errors import Code, MeshError

CLAIM = "receipts_name_gpus"
"""A node that claims it names, in each receipt over what its engine did, the GPUs of its evidence."""


class GpusNotNamed(MeshError):
    """Policy requires a GPU of nodes, and the node's receipt names none."""

    code = Code.PERMISSION_DENIED
    reason = "NODE_GPUS_NOT_NAMED"


class GpusNotEvidenced(MeshError):
    """The receipt names other GPUs than the node's evidence shows."""

    code = Code.PERMISSION_DENIED
    reason = "NODE_GPUS_NOT_EVIDENCED"


def listed(ueids: Collection[str]) -> str | None:
    """Return the member `gpus`: the UEIDs in canonical JSON, in order; None where there are none."""
    return jcs.dumps(sorted(ueids)).decode() if ueids else None


def verify_gpus(own: Receipt, shown: Collection[str], claims: Mapping[str, Any], *, required: bool) -> None:
    """Accept a node's receipt that names the GPUs of its evidence, given as UEIDs, and no others.

    `claims` are the evidence's: a node that was measured before receipts named GPUs names none. One that names none,
    though it could, is refused where policy requires a GPU: else its next evidence may show none already. Raises
    `GpusNotNamed` or `GpusNotEvidenced`.
    """
    wanted = listed(shown)
    named = {event.gpus for event in own.events if isinstance(event, Generated)}
    if named - {None, wanted}:
        raise GpusNotEvidenced("the node's receipt names other GPUs than its evidence shows")
    generated = bool(named) or own.forwarded is not None
    if required and generated and claims.get(CLAIM) is True and named != {wanted}:
        raise GpusNotNamed("policy requires a GPU of nodes, and the node's receipt names none")
