"""It is responsible for the policies and revocations that the log holds: what its writers are judged under.

A policy record counts by its operators' signatures and its place in the chain alone, whoever wrote it: the first one
must be the seed that `log.json` names, so neither the KMS nor the ledger can put another mesh's rules into a log. A
revocation counts by the signature of an operator of that chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, parse_revocation, verify_revocation
from libs.policy.signatures import known_signatures, parse_signed, verify
from libs.policy.succession import verify_successor
from services.ledger.storage.description import LogDescription


class PolicyNotInChain(MeshError):
    """The policy is neither the next of the log's chain nor one that it holds already."""

    reason = "POLICY_NOT_IN_CHAIN"


class SeedPolicyMissing(MeshError):
    """The log holds no policy yet, and the seed that it was made for is not here."""

    code = Code.NOT_FOUND
    reason = "SEED_POLICY_MISSING"


@dataclass(frozen=True, slots=True)
class _Logged:
    """A version that the log holds, and who had to approve it."""

    digest: bytes
    signed: bytes
    """SHA-256 of the form that was verified: a copy of it needs no second look."""
    operator_keys: tuple[bytes, ...]
    operator_threshold: int


class LoggedPolicies:
    """The chain so far. Fork it to try records on: a batch that is refused must not change anything."""

    def __init__(self, description: LogDescription) -> None:
        self._description = description
        self._logged: dict[int, _Logged] = {}
        self._newest: Policy | None = None
        self._seed: Policy | None = None
        self._revocations = RevocationSet()

    def offer_seed(self, signed: bytes) -> None:
        """Take the signed seed, to judge by until the log holds a policy. Raises `PolicyNotInChain` and refusals."""
        self._seed = self._verify_seed(signed)

    @property
    def newest(self) -> Policy:
        """The policy that writers are judged under. Raises `SeedPolicyMissing`."""
        return self._judging.under(self._revocations)

    def take(self, signed: bytes) -> None:
        """Take a policy record: the next version, or one that is logged already, which changes nothing.

        Raises `PolicyMalformed`, `PolicySignaturesInsufficient`, `PolicyVersionNotNext` or `PolicyNotInChain`.
        """
        current, form = self._newest, sha256(signed).digest()
        if current is None:
            description = self._description
            self._advance(self._verify_seed(signed), form, description.operator_keys, description.operator_threshold)
            return
        if any(logged.signed == form for logged in self._logged.values()):
            return
        known = self._logged.get(parse_signed(signed).policy.version)
        if known is None:
            self._advance(verify_successor(current, signed), form, current.operator_keys, current.operator_threshold)
        elif _verify(signed, known.operator_keys, known.operator_threshold).digest != known.digest:
            raise PolicyNotInChain("the log holds another policy of that version")

    def revoke(self, signed: bytes) -> None:
        """Take a revocation record, whichever policy of the log its operator stands in.

        Raises `RevocationMalformed`, `RevocationSignatureInvalid` or `RevocationOfAnotherMesh`.
        """
        revocation, policy = parse_revocation(signed), self._judging
        # A known one with another signature is verified: what nobody signed is told as such, each time.
        if self._revocations.signed.get(revocation.revocation.id) == revocation:
            return
        earlier = (each.operator_keys for each in self._logged.values())
        operators = {*self._description.operator_keys, *policy.operator_keys}.union(*earlier)
        verify_revocation(revocation, operators, policy.trust_domain)
        self._revocations = self._revocations.union([revocation])

    def fork(self) -> LoggedPolicies:
        copy = LoggedPolicies(self._description)
        copy._logged, copy._newest, copy._seed = dict(self._logged), self._newest, self._seed
        copy._revocations = self._revocations
        return copy

    @property
    def _judging(self) -> Policy:
        """The newest version, without what was revoked since."""
        policy = self._newest or self._seed
        if policy is None:
            raise SeedPolicyMissing("configure the seed policy that this log was made with")
        return policy

    def _advance(self, policy: Policy, form: bytes, operator_keys: tuple[bytes, ...], threshold: int) -> None:
        self._logged[policy.version] = _Logged(policy.digest, form, operator_keys, threshold)
        self._newest = policy

    def _verify_seed(self, signed: bytes) -> Policy:
        description = self._description
        policy = _verify(signed, description.operator_keys, description.operator_threshold)
        if policy.digest != description.seed_policy_digest:
            raise PolicyNotInChain("the first policy of this log is another one")
        return policy


def _verify(signed: bytes, operator_keys: tuple[bytes, ...], threshold: int) -> Policy:
    """Verify a version as a seed is: the log may have begun with one that outgoing operators signed too."""
    document = known_signatures(parse_signed(signed), operator_keys)
    return verify(document.document, operator_keys, threshold)
