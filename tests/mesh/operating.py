"""What operators of a local mesh do with their keys: sign the next policy, and revoke."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from libs import jcs
from libs.policy.revocation import Revocation, RevocationKind, SignedRevocation, sign_revocation
from libs.policy.signatures import parse_signed
from services.cli.mesh.operators import load_key
from services.cli.policy.draft import sign_policy, unsigned
from tests.mesh.running import RunningMesh


def successor(mesh: RunningMesh, current: bytes, changed: Mapping[str, Any]) -> bytes:
    """Return the signed policy after `current` with these members changed, signed by two of three operators."""
    members = jcs.loads_object(current)["policy"]
    digest = parse_signed(current).policy.digest
    signed = unsigned(members | {"version": members["version"] + 1, "previous": digest.hex()} | dict(changed))
    for operator in (1, 3):
        signed = sign_policy(signed, load_key(mesh.state / "operators" / f"operator-{operator}.pem"))
    return signed


def revocation(mesh: RunningMesh, kind: RevocationKind, value: str) -> SignedRevocation:
    """Return a revocation as of now, signed by one of three operators."""
    now = int(time.time() * 1000)
    withdrawn = Revocation(mesh.mesh["trust_domain"], kind, value, "a benchmark", now)
    return sign_revocation(withdrawn, load_key(mesh.state / "operators" / "operator-2.pem"))
