"""It is responsible for the policy and the revocations that a running mesh goes by now, verified before they count.

The KMS hands them over; that the mesh's operators signed them is checked here, under the keys that mesh.json names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, verify_revocation
from libs.policy.signatures import verify
from libs.policy.succession import verify_valid_at
from services.cli.mesh.reading import MeshReader
from services.cli.policy.revoke import read_revocations


class PolicyOfOtherDomain(MeshError):
    """The KMS handed over the policy of another mesh."""

    code = Code.PERMISSION_DENIED
    reason = "POLICY_OF_ANOTHER_MESH"


@dataclass(frozen=True, slots=True)
class InForce:
    """What counts now."""

    document: Policy
    """The version alone, without what was revoked since."""
    revocations: RevocationSet
    """Lifted ones included."""

    @property
    def policy(self) -> Policy:
        return self.document.under(self.revocations)

    @property
    def words(self) -> str:
        return f"version {self.document.version} of {self.document.trust_domain}, {self.revocations.number} revocations"


async def read_in_force(mesh: Path, timeout_seconds: float, now: float) -> InForce:
    """Ask the KMS, and verify what it answers.

    A revocation counts when whoever it names as its signer did sign it: one too many refuses more, never less. Raises
    what the KMS refuses with, `PolicySignaturesInsufficient`, `PolicyNotValidNow`, `PolicyOfOtherDomain` and what
    `verify_revocation` raises.
    """
    reader = MeshReader(mesh)
    trust_domain = reader.text("trust_domain")
    known = await read_revocations(mesh, timeout_seconds)
    keys, threshold = reader.keys("operator_public_keys"), reader.number("operator_threshold")
    policy = verify(known.signed_policy.document, keys, threshold)
    if policy.trust_domain != trust_domain:
        raise PolicyOfOtherDomain(f"the KMS handed over a policy of {policy.trust_domain}")
    verify_valid_at(policy, now)
    for signed in known.revocations:
        verify_revocation(signed, (signed.key,), trust_domain)
    return InForce(policy, RevocationSet().union(known.revocations))
