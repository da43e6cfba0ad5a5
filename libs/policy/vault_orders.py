"""It is responsible for orders about a tenant's vault: to erase it or a month of it, to hold it, to release it, to give
out its tag key.

What is erased can be read by nobody again, and a key that was given out cannot be taken back, so m of n operators order
it, or the tenant administrator whom policy names. A hold and its release take operators. An order names the vault,
never the tenant: so it can stand in the public log, and cannot be used a second time on the vault of a tenant who came
back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.orders import (
    ERASE_VAULT,
    GIVE_TAG_KEY,
    RETIRE_KEY,
    Order,
    OrderOfAnotherKind,
    parse_order,
    require_retirable,
    verify_order,
    verify_signed_by,
)

VAULT_ID_BYTES = 16
_SUBJECT = re.compile(r"([0-9a-f]{32})(,([0-9]{4}-[0-9]{2}))?")
_TAG_KEY = re.compile(r"([0-9a-f]{32}),([0-9a-f]{64})")
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")
_FIRST_YEAR = 1970


class VaultSubjectMalformed(MeshError):
    """The order's subject is not a vault, nor what else such an order may name: a month of it, or who gets a key."""

    code = Code.INVALID_ARGUMENT
    reason = "VAULT_SUBJECT_MALFORMED"


@dataclass(frozen=True, slots=True)
class VaultPart:
    """A tenant's vault, or one month of it."""

    vault_id: bytes
    epoch: int | None
    """Months since January 1970, which is 1; None: the whole vault."""

    @property
    def subject(self) -> str:
        """How an order names it."""
        return self.vault_id.hex() if self.epoch is None else f"{self.vault_id.hex()},{month_of(self.epoch)}"

    @property
    def key_name(self) -> str:
        """The KMS's half of the vault's key."""
        return f"ledger-vault/{self.vault_id.hex()}"


@dataclass(frozen=True, slots=True)
class TagKeyGift:
    """Whose tag key is given to whom."""

    vault_id: bytes
    receiver: bytes
    """SHA-256 of the public key (SubjectPublicKeyInfo) with which the receiver calls."""

    @property
    def subject(self) -> str:
        """How an order names it."""
        return f"{self.vault_id.hex()},{self.receiver.hex()}"


def month_of(epoch: int) -> str:
    """Return an epoch as people write it, YYYY-MM."""
    years, months = divmod(epoch - 1, 12)
    return f"{_FIRST_YEAR + years:04}-{months + 1:02}"


def epoch_of(month: str) -> int:
    """Return the epoch of a month, YYYY-MM. Raises `VaultSubjectMalformed`."""
    written = _MONTH.fullmatch(month)
    if written is None or int(written[1]) < _FIRST_YEAR:
        raise VaultSubjectMalformed(f"a month is YYYY-MM, from {_FIRST_YEAR}-01 on")
    return (int(written[1]) - _FIRST_YEAR) * 12 + int(written[2])


def vault_part(order: Order) -> VaultPart:
    """Return what an order is about. Raises `VaultSubjectMalformed`."""
    subject = _SUBJECT.fullmatch(order.subject)
    if subject is None or not any(vault_id := bytes.fromhex(subject[1])):
        raise VaultSubjectMalformed("the subject is a vault's id, and after a comma the month where it is one alone")
    return VaultPart(vault_id, None if subject[3] is None else epoch_of(subject[3]))


def verify_erasure(signed: bytes, policy: Policy, now: float) -> VaultPart:
    """Return what m of n operators of the policy, or its tenant administrator, ordered to be erased.

    Raises what `verify_order` does, and `VaultSubjectMalformed`.
    """
    return vault_part(_verify_either(signed, ERASE_VAULT, policy, now))


def verify_tag_key_gift(signed: bytes, policy: Policy, now: float) -> TagKeyGift:
    """Return whose tag key m of n operators of the policy, or its tenant administrator, ordered to be given to whom.

    Raises what `verify_order` does, and `VaultSubjectMalformed`.
    """
    return tag_key_gift(_verify_either(signed, GIVE_TAG_KEY, policy, now))


def tag_key_gift(order: Order) -> TagKeyGift:
    """Return what an order to give out a tag key is about. Raises `VaultSubjectMalformed`."""
    subject = _TAG_KEY.fullmatch(order.subject)
    if subject is None or not any(vault_id := bytes.fromhex(subject[1])):
        raise VaultSubjectMalformed("the subject is a vault's id and, after a comma, the SHA-256 of a public key")
    return TagKeyGift(vault_id, bytes.fromhex(subject[2]))


def verify_hold(signed: bytes, action: str, policy: Policy, now: float) -> VaultPart:
    """Return the vault that m of n operators ordered to be held, or released. Raises what `verify_order` does, and
    `VaultSubjectMalformed`.
    """
    part = vault_part(verify_order(signed, action, policy, now))
    if part.epoch is not None:
        raise VaultSubjectMalformed("a vault is held whole")
    return part


def verify_retirement(signed: bytes, policy: Policy, now: float) -> str:
    """Return the name of the key that an order ends for ever: one to retire it, or one to erase the vault it is of.

    Raises what `verify_order` does, `VaultSubjectMalformed`, `KeyNotRetirable`.
    """
    if parse_order(signed).order.action == ERASE_VAULT:
        part = verify_erasure(signed, policy, now)
        if part.epoch is not None:
            raise OrderOfAnotherKind("the order is to erase a month: the vault's key is needed for the others")
        return part.key_name
    name = verify_order(signed, RETIRE_KEY, policy, now).subject
    require_retirable(name)
    return name


def _verify_either(signed: bytes, action: str, policy: Policy, now: float) -> Order:
    """Return an order of m of n operators, or of the tenant administrator. Raises what `verify_order` does."""
    parsed, administrator = parse_order(signed), policy.tenant_admin_key
    # One who is an operator too is one of m: nobody orders alone because they hold both offices.
    if [key for key, _ in parsed.signatures] == [administrator] and administrator not in policy.operator_keys:
        return verify_signed_by(parsed, action, policy.trust_domain, (administrator,), 1, now)
    return verify_order(signed, action, policy, now)
