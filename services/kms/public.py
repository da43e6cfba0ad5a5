"""It is responsible for the public side of keys: whose a public key is, and signatures for those who hold no key."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from libs.errors import Code, MeshError
from libs.identity.lease import Lease
from libs.policy.custody import KeyStatement, KeyUse, sign_key_statement, sign_key_use
from services.kms.access import Access, Grant, decision
from services.kms.ca import CertificateAuthority
from services.kms.decisions import Decisions
from services.kms.keyring import Keyring

MAX_MESSAGE_BYTES = 1024 * 1024


class KeyWithoutPublicHalf(MeshError):
    """A symmetric key has none."""

    reason = "KEY_WITHOUT_PUBLIC_HALF"


class KeySignsNot(MeshError):
    """By policy the key is not one to sign with."""

    reason = "KEY_SIGNS_NOT"


class MessageTooLarge(MeshError):
    """Over 1 MiB: sign a digest of it."""

    code = Code.INVALID_ARGUMENT
    reason = "MESSAGE_TOO_LARGE"


@dataclass(frozen=True, slots=True)
class Stated:
    """A statement and the CA's signature over it."""

    document: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature by a named key, and for whom it was made."""

    signature: bytes
    use: Stated


class PublicKeys:
    """States keys, and signs with them."""

    def __init__(
        self,
        keyring: Keyring,
        ca: CertificateAuthority,
        access: Access,
        decisions: Decisions,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keyring = keyring
        self._ca = ca
        self._access = access
        self._decisions = decisions
        self._clock = clock

    def state(self, name: str, epoch: int) -> Stated:
        """Return the public half of a key, 0 being the newest epoch. Raises what `Access.look_up` does, and
        `KeyWithoutPublicHalf`.
        """
        grant = self._access.look_up(name, epoch)
        if not grant.rule.algorithm.has_public_key:
            raise KeyWithoutPublicHalf(f"by policy {name} is for {grant.rule.algorithm}")
        statement = KeyStatement(
            trust_domain=self._ca.trust_domain,
            name=name,
            epoch=grant.epoch,
            newest_epoch=grant.newest_epoch,
            algorithm=grant.rule.algorithm,
            public_key=self._public_key(grant),
            roles=grant.rule.roles,
            policy_version=grant.policy.version,
            policy_digest=grant.policy.digest,
            time_ms=int(self._clock() * 1000),
        )
        return Stated(statement.document, sign_key_statement(statement, self._ca.key))

    async def sign(self, name: str, message: bytes, caller: Lease) -> Signed:
        """Sign with the newest epoch, once the ledger holds that it was asked for.

        Raises what `Access.require` does, `KeySignsNot`, `MessageTooLarge`, `KeyBookFull`, `LedgerUnavailable`,
        `KeyChangedMeanwhile`.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"a message has at most {MAX_MESSAGE_BYTES} bytes: sign a digest of it")
        grant = await self._access.require(name, 0, caller)
        if not grant.rule.algorithm.signs:
            refusal = KeySignsNot(f"by policy {name} is for {grant.rule.algorithm}")
            await self._access.record_refusal(name, grant.epoch, caller, refusal)
            raise refusal
        await self._access.note_use(grant)
        signature = self._keyring.sign(name, grant.epoch, grant.rule.algorithm, message)
        use = KeyUse(
            trust_domain=self._ca.trust_domain,
            name=name,
            epoch=grant.epoch,
            algorithm=grant.rule.algorithm,
            public_key=self._public_key(grant),
            message_sha256=sha256(message).digest(),
            signature_sha256=sha256(signature).digest(),
            spiffe_id=caller.certificate.spiffe_id,
            evidence_sha256=caller.evidence.digest,
            policy_version=grant.policy.version,
            policy_digest=grant.policy.digest,
            time_ms=int(self._clock() * 1000),
        )
        said = decision("signed", name, grant.epoch, caller, grant.policy)
        await self._decisions.record({**said, "message_sha256": use.message_sha256.hex()})
        self._access.require_still(grant, caller)
        return Signed(signature, Stated(use.document, sign_key_use(use, self._ca.key)))

    def _public_key(self, grant: Grant) -> bytes:
        return self._keyring.public_key(grant.name, grant.epoch, grant.rule.algorithm)
