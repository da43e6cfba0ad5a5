"""It is responsible for refusing keys and names that operators revoked, whatever their evidence proves."""

from __future__ import annotations

from libs.errors import Code, MeshError
from libs.policy.document import Policy


class KeyRevoked(MeshError):
    """Operators revoked the key: its holder needs a certificate for another one."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_REVOKED"


class NodeRevoked(MeshError):
    """Operators revoked the instance or person, by SPIFFE ID."""

    code = Code.PERMISSION_DENIED
    reason = "NODE_REVOKED"


def verify_not_revoked(spki_sha256: bytes, spiffe_id: str, policy: Policy) -> None:
    """Raise `KeyRevoked` or `NodeRevoked` if operators have withdrawn the bearer of a certificate."""
    if spki_sha256.hex() in policy.revoked.keys:
        raise KeyRevoked(f"the key {spki_sha256.hex()} is revoked")
    if spiffe_id in policy.revoked.spiffe_ids:
        raise NodeRevoked(f"{spiffe_id} is revoked")
