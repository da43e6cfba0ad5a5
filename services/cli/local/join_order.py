"""It is responsible for the operators' order that the second KMS of a local mesh be given the root.

All operators of a local mesh are here, so enough of them sign at once; the order holds for a day.
"""

from __future__ import annotations

from libs.files import write_durably
from libs.policy.compose import compose_hash
from libs.policy.orders import JOIN_KMS, Order, SignedOrder, join_subject
from services.cli.local.policy import LocalOperators
from services.cli.mesh.layout import Layout
from services.cli.mesh.roster import KMS_REPLICA, TRUST_DOMAIN, instance_of
from services.cli.policy.reference import read_reference
from services.cli.terminal.inputs import InputUnreadable

_SECONDS = 86400


def order_join(layout: Layout, operators: LocalOperators, compose: bytes, now: int) -> None:
    """Write the order. Raises what reading reference.json raises."""
    device_id = read_reference(layout.reference).device_id
    if device_id is None:
        raise InputUnreadable(f"{layout.reference} names no machine")
    newcomer = f"spiffe://{TRUST_DOMAIN}/kms/{instance_of(KMS_REPLICA)}"
    subject = join_subject(newcomer, compose_hash(compose), device_id)
    signed = SignedOrder(Order(TRUST_DOMAIN, JOIN_KMS, subject, now + _SECONDS))
    for key in operators.keys[: operators.threshold]:
        signed = signed.signed_by(key)
    write_durably(layout.join_order, signed.document)
