"""It is responsible for m-of-n: whether enough of the right operators signed a policy.

Every signature on a policy must be valid, made by a distinct key, and by a key that either those who verify or the
policy itself name: a signature that convinces nobody is refused, not skipped, so that a signed policy has one meaning
for all who read it. Both sets must reach their threshold, as TUF verifies a new root under the old keys and its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.compose import Anchors
from libs.policy.document import MAX_POLICY_BYTES, Policy, PolicyMalformed, parse, read
from libs.policy.members import Members
from libs.policy.vocabulary import KEY_BYTES, SIGNATURE_BYTES

_CONTEXT = b"teemesh/policy/v1\0"
_MAX_SIGNATURES = 64


class PolicySignaturesInsufficient(MeshError):
    """The policy does not carry enough valid signatures of the operators that count."""

    code = Code.PERMISSION_DENIED
    reason = "POLICY_SIGNATURES_INSUFFICIENT"


class PolicyOfAnotherMesh(MeshError):
    """The policy is for a trust domain other than the one this service was measured with."""

    code = Code.PERMISSION_DENIED
    reason = "POLICY_OF_ANOTHER_MESH"


@dataclass(frozen=True, slots=True)
class Signature:
    """One operator's signature, not yet verified."""

    key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """A policy with whatever signatures it carries, not yet verified."""

    policy: Policy
    signatures: tuple[Signature, ...]

    @property
    def document(self) -> bytes:
        """The signed form, canonical JSON: what is stored, distributed and published."""
        return jcs.dumps(
            {
                "policy": jcs.loads(self.policy.document),
                "signatures": [{"key": s.key.hex(), "signature": s.signature.hex()} for s in self.signatures],
            }
        )


def parse_signed(signed: bytes) -> SignedPolicy:
    """Read a signed policy without verifying it. Raises `PolicyMalformed`, also for two signatures by one key."""
    if len(signed) > MAX_POLICY_BYTES:
        raise PolicyMalformed(f"the document is larger than {MAX_POLICY_BYTES} bytes")
    try:
        value = jcs.loads_object(signed)
    except jcs.JsonMalformed as error:
        raise PolicyMalformed(f"the document is {error}") from error
    members = Members(value, "", PolicyMalformed)
    policy = read(members.value("policy"))
    signatures = []
    for entry in members.objects("signatures"):
        signatures.append(Signature(entry.octets("key", KEY_BYTES), entry.octets("signature", SIGNATURE_BYTES)))
        entry.end()
    members.end()
    if len(signatures) > _MAX_SIGNATURES:
        raise members.refuse("signatures", f"must be at most {_MAX_SIGNATURES}")
    members.distinct([signature.key for signature in signatures], "signatures")
    return SignedPolicy(policy, tuple(signatures))


def sign(policy_bytes: bytes, key: Ed25519PrivateKey) -> Signature:
    """Sign a policy. The bytes need not be canonical; the signature is over the canonical form. Raises
    `PolicyMalformed`: nobody should sign what no service will read.
    """
    return Signature(key.public_key().public_bytes_raw(), key.sign(signing_input(parse(policy_bytes))))


def with_signature(document: SignedPolicy, signature: Signature) -> SignedPolicy:
    """Return the policy with one more signature. Raises `PolicyMalformed` for a second one by the same key."""
    if any(entry.key == signature.key for entry in document.signatures):
        raise PolicyMalformed(f"signatures has one by {signature.key.hex()} already")
    return SignedPolicy(document.policy, (*document.signatures, signature))


def signing_input(policy: Policy) -> bytes:
    """Return the bytes that operators sign, for keys held elsewhere than in a file."""
    return _CONTEXT + policy.digest


def verify(signed: bytes, operator_keys: Collection[bytes], threshold: int) -> Policy:
    """Return the policy when at least `threshold` of these operators signed it, and its own operators too.

    Says nothing about the policy's version, validity or trust domain. Raises `PolicyMalformed`,
    `PolicySignaturesInsufficient`.
    """
    document = parse_signed(signed)
    policy = document.policy
    signers = verify_each(document, {*operator_keys, *policy.operator_keys})
    _require(signers, operator_keys, threshold, "the operators who must approve it")
    _require(signers, policy.operator_keys, policy.operator_threshold, "its own operators")
    return policy


def verify_seed(signed: bytes, anchors: Anchors) -> Policy:
    """Return the policy when the operators of a measured configuration signed it for that configuration's mesh.

    The host supplies the seed, so without the trust domain's check it could start a service of one mesh under the
    policy that the same operators signed for another. Where the version changed the operators, a service that was
    measured with the new ones finds signatures of outgoing ones, whom it has no way to know: they are passed over.
    Raises what `verify` does, and `PolicyOfAnotherMesh`.
    """
    document = known_signatures(parse_signed(signed), anchors.operator_keys).document
    policy = verify(document, anchors.operator_keys, anchors.operator_threshold)
    if policy.trust_domain != anchors.trust_domain:
        raise PolicyOfAnotherMesh(
            f"the policy is for {policy.trust_domain}, this service was measured for {anchors.trust_domain}"
        )
    return policy


def verify_own(document: SignedPolicy) -> Policy:
    """Return the policy when enough of its own operators signed it: what a policy says of itself, and nobody else does.

    Signatures of others, as those of outgoing operators, are passed over. Raises `PolicySignaturesInsufficient`.
    """
    policy = document.policy
    return verify(known_signatures(document, ()).document, policy.operator_keys, policy.operator_threshold)


def known_signatures(document: SignedPolicy, operator_keys: Collection[bytes]) -> SignedPolicy:
    """Return the policy with those signatures whose keys are among these or named by the policy itself."""
    known = {*operator_keys, *document.policy.operator_keys}
    return SignedPolicy(document.policy, tuple(entry for entry in document.signatures if entry.key in known))


def verify_each(document: SignedPolicy, known: Collection[bytes]) -> frozenset[bytes]:
    """Return the keys that signed, each of them known and each signature valid. Counts nothing.

    Raises `PolicySignaturesInsufficient`.
    """
    message = signing_input(document.policy)
    for entry in document.signatures:
        if entry.key not in known:
            raise PolicySignaturesInsufficient(f"a signature is by {entry.key.hex()}, which is no operator's key")
        try:
            Ed25519PublicKey.from_public_bytes(entry.key).verify(entry.signature, message)
        except (InvalidSignature, ValueError) as error:
            raise PolicySignaturesInsufficient(f"the signature by {entry.key.hex()} is not valid") from error
    return frozenset(entry.key for entry in document.signatures)


def _require(signers: frozenset[bytes], keys: Collection[bytes], threshold: int, whose: str) -> None:
    distinct = set(keys)
    if not 1 <= threshold <= len(distinct):
        raise PolicySignaturesInsufficient(f"a threshold of {threshold} among {len(distinct)} keys admits no policy")
    present = len(signers & distinct)
    if present < threshold:
        raise PolicySignaturesInsufficient(f"signed by {present} of {whose}, {threshold} are needed: sign it")
