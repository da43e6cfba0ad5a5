"""It is responsible for what only m of n operators together may order, since nothing can undo it: a key refused for
ever, the root given to another KMS, a vault erased or its tag key given out (`libs.policy.vault_orders`); and a log
pruned (`libs.policy.prune_orders`).

An order is canonical JSON of {v, trust_domain, action, subject, not_after} and, where there is one, reason. The signed
form is canonical JSON of {order, signatures}; each operator signs "teemesh/order/v1", a zero byte, and the SHA-256 of
the order (Ed25519). As with a policy every signature must be valid and by an operator: one that convinces nobody is
refused, not skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.members import Members
from libs.policy.releases import is_boot_class
from libs.policy.vocabulary import KEY_BYTES, SIGNATURE_BYTES, TRUST_DOMAIN

RETIRE_KEY = "retire-key"
"""The subject is the key's name."""

JOIN_KMS = "join-kms"
"""The subject is an instance, its code and its machine: see `join_subject`."""

ERASE_VAULT = "erase-vault"
"""The subject is a tenant's vault, or a month of it: see `libs.policy.vault_orders`."""

HOLD_VAULT = "hold-vault"
"""The subject is a tenant's vault, which nobody may erase then."""

RELEASE_VAULT = "release-vault"
"""The subject is a tenant's vault that is held."""

GIVE_TAG_KEY = "give-tag-key"
"""The subject is a tenant's vault, and who may have what makes its entries recognisable."""

PRUNE_LOG = "prune-log"
"""The subject is a log and the first entry that stays whole: see `libs.policy.prune_orders`."""

MAX_ORDER_BYTES = 64 * 1024

_CONTEXT = b"teemesh/order/v1\0"
_ACTION = re.compile("|".join((RETIRE_KEY, JOIN_KMS, ERASE_VAULT, HOLD_VAULT, RELEASE_VAULT, GIVE_TAG_KEY, PRUNE_LOG)))
_SUBJECT = re.compile(r"[!-~]{1,500}")
ORDER_REASON = re.compile(r"[ -~]{1,256}")
"""Printable ASCII: it is shown on terminals, and stays in the log."""

_MAX_SIGNATURES = 64


class OrderMalformed(MeshError):
    """The bytes are not an order that this version reads."""

    code = Code.INVALID_ARGUMENT
    reason = "ORDER_MALFORMED"


class OrderSignaturesInsufficient(MeshError):
    """The order does not carry enough valid signatures of the operators in force."""

    code = Code.PERMISSION_DENIED
    reason = "ORDER_SIGNATURES_INSUFFICIENT"


class OrderExpired(MeshError):
    """The order's time is over: the operators must sign it anew."""

    reason = "ORDER_EXPIRED"


class OrderOfAnotherKind(MeshError):
    """The order is for another mesh, or for something else than what is asked for with it."""

    code = Code.PERMISSION_DENIED
    reason = "ORDER_OF_ANOTHER_KIND"


class KeyNotRetirable(MeshError):
    """Without this key there would be no log any more, or no share of a vault could be destroyed in good order."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_NOT_RETIRABLE"


@dataclass(frozen=True, slots=True)
class Order:
    """What is ordered."""

    trust_domain: str
    action: str
    subject: str
    not_after: int
    """Unix seconds, excluded."""
    reason: str = ""
    """For people; it decides nothing."""

    @property
    def document(self) -> bytes:
        """Canonical JSON: what is hashed and signed."""
        return jcs.dumps(
            {
                "v": 1,
                "trust_domain": self.trust_domain,
                "action": self.action,
                "subject": self.subject,
                "not_after": self.not_after,
                **({"reason": self.reason} if self.reason else {}),
            }
        )

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.document).digest()


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """An order with whatever signatures it carries, not yet verified."""

    order: Order
    signatures: tuple[tuple[bytes, bytes], ...] = ()
    """Public keys and what they signed, each key once."""

    @property
    def document(self) -> bytes:
        """Canonical JSON: what is passed on and carried out."""
        return jcs.dumps(
            {
                "order": jcs.loads(self.order.document),
                "signatures": [{"key": key.hex(), "signature": made.hex()} for key, made in self.signatures],
            }
        )

    def signed_by(self, operator: Ed25519PrivateKey) -> SignedOrder:
        """Return it with one more signature. Raises `OrderMalformed` for a second one by the same key."""
        key = operator.public_key().public_bytes_raw()
        if any(key == signer for signer, _ in self.signatures):
            raise OrderMalformed(f"signatures has one by {key.hex()} already")
        made = operator.sign(_CONTEXT + self.order.digest)
        return SignedOrder(self.order, (*self.signatures, (key, made)))


def join_subject(spiffe_id: str, compose_hash: str, device_id: str) -> str:
    """Return who is to join: a SPIFFE ID, the SHA-256 of its app-compose and its machine's id, both hexadecimal."""
    return f"{spiffe_id},{compose_hash},{device_id}"


def require_retirable(name: str) -> None:
    """Raise `KeyNotRetirable` for a key that no order may retire."""
    if is_boot_class(name):
        if "/" in name:
            raise KeyNotRetirable(f"{name} ends with its vault: order that to be erased")
        raise KeyNotRetirable(f"without {name} there is no log")


def valid_signers(signed: SignedOrder) -> tuple[bytes, ...]:
    """Return the keys that signed this very order; whether they are operators', only a policy says."""
    return tuple(key for key, made in signed.signatures if _is_by(key, made, signed.order))


def _is_by(key: bytes, made: bytes, order: Order) -> bool:
    try:
        _verify_signature(order, key, made)
    except (InvalidSignature, ValueError):
        return False
    return True


def _verify_signature(order: Order, key: bytes, made: bytes) -> None:
    """Raises `InvalidSignature`, and `ValueError` for what is no key."""
    Ed25519PublicKey.from_public_bytes(key).verify(made, _CONTEXT + order.digest)


def parse_order(signed: bytes) -> SignedOrder:
    """Read a signed order without verifying it. Raises `OrderMalformed`."""
    if len(signed) > MAX_ORDER_BYTES:
        raise OrderMalformed(f"an order has at most {MAX_ORDER_BYTES} bytes")
    try:
        value = jcs.loads_object(signed)
    except jcs.JsonMalformed as error:
        raise OrderMalformed(f"the order is {error}") from error
    members = Members(value, "", OrderMalformed)
    entry = members.object("order")
    entry.integer("v", 1, 1)
    order = Order(
        trust_domain=entry.text("trust_domain", TRUST_DOMAIN),
        action=entry.text("action", _ACTION),
        subject=entry.text("subject", _SUBJECT),
        not_after=entry.integer("not_after", 0),
        reason=entry.text("reason", ORDER_REASON) if entry.has("reason") else "",
    )
    entry.end()
    signatures = []
    for each in members.objects("signatures"):
        signatures.append((each.octets("key", KEY_BYTES), each.octets("signature", SIGNATURE_BYTES)))
        each.end()
    members.end()
    if len(signatures) > _MAX_SIGNATURES:
        raise members.refuse("signatures", f"must be at most {_MAX_SIGNATURES}")
    members.distinct([key for key, _ in signatures], "signatures")
    return SignedOrder(order, tuple(signatures))


def verify_order(signed: bytes, action: str, policy: Policy, now: float) -> Order:
    """Return an order for this action that m of n operators of the policy signed, and that holds at `now`.

    Raises `OrderMalformed`, `OrderOfAnotherKind`, `OrderSignaturesInsufficient`, `OrderExpired`.
    """
    return verify_signed_by(
        parse_order(signed), action, policy.trust_domain, policy.operator_keys, policy.operator_threshold, now
    )


def verify_signed_by(
    signed: SignedOrder, action: str, trust_domain: str, keys: Collection[bytes], threshold: int, now: float
) -> Order:
    """Return an order that at least so many of these keys signed, and no other. Raises what `verify_order` does."""
    order = signed.order
    if (order.trust_domain, order.action) != (trust_domain, action):
        raise OrderOfAnotherKind(f"the order is to {order.action} in {order.trust_domain}")
    for key, made in signed.signatures:
        if key not in keys:
            raise OrderSignaturesInsufficient(f"a signature is by {key.hex()}, which is no operator's key")
        try:
            _verify_signature(order, key, made)
        except (InvalidSignature, ValueError) as error:
            raise OrderSignaturesInsufficient(f"the signature by {key.hex()} is not valid") from error
    if (present := len(signed.signatures)) < threshold:
        raise OrderSignaturesInsufficient(f"signed by {present} of its operators, {threshold} are needed: sign it")
    if now >= order.not_after:
        raise OrderExpired("the order's time is over: sign a new one")
    return order
