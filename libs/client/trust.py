"""Responsible for what a client believes before it has spoken to anyone: operators, their policy, its trust domain."""

from __future__ import annotations

from dataclasses import dataclass

from libs.policy.compose import Anchors
from libs.policy.document import Policy
from libs.policy.signatures import verify_seed
from libs.policy.succession import verify_valid_at
from libs.transparency.quorum import NOBODY, Quorum

ROUTER_ROLE = "router"


@dataclass(frozen=True, slots=True)
class Trust:
    """The anchors, from a source that the user trusts: never from the mesh itself."""

    signed_policy: bytes
    """The operators' policy in its signed form. It says what may run as what; its signatures are verified here."""
    operator_keys: tuple[bytes, ...]
    """Ed25519 public keys, raw."""
    operator_threshold: int
    trust_domain: str
    ca_pem: bytes | None = None
    """Who may vouch for the router's host name; None: the system's own certificate authorities. A name is all that it
    vouches for: the key is pinned by attestation."""
    mesh_ca: bytes | None = None
    """The mesh CA's certificate, DER, where the user has it: then the router must name the same key."""
    quorum: Quorum = NOBODY
    """Which witnesses must have cosigned the tree that an answer's receipt is shown in."""

    def policy(self, now: float) -> Policy:
        """Return the policy if enough operators signed it for this mesh and it holds now (Unix seconds).

        Raises `PolicyMalformed`, `PolicySignaturesInsufficient`, `PolicyOfAnotherMesh`, `PolicyNotValidNow`.
        """
        anchors = Anchors(ROUTER_ROLE, self.trust_domain, self.operator_keys, self.operator_threshold)
        policy = verify_seed(self.signed_policy, anchors)
        verify_valid_at(policy, now)
        return policy
