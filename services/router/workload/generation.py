"""Responsible for one generation of this process's ACI keys: what one keyset lists, with the private halves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.aci import keyset as keysets
from libs.aci.e2ee.suites import SUITES, PrivateKey, Suite
from libs.aci.keyset import Keyset, PublicKey, TlsKey

_ID_DIGITS = 8


@dataclass(frozen=True, slots=True)
class E2eeKey:
    """A key to which prompts may be encrypted."""

    key_id: str
    suite: Suite
    private: PrivateKey

    @classmethod
    def generate(cls, suite: Suite) -> E2eeKey:
        private = suite.key()
        return cls(_key_id(f"router-e2ee-{suite.curve}", private.public), suite, private)

    def entry(self) -> PublicKey:
        """Return what the keyset has of it."""
        return PublicKey(self.key_id, self.suite.algo, self.private.public.hex())

    def listed_as(self, text: str) -> bool:
        """Say whether a client means this key, in any form in which it may be written (e2ee-v2 section 4)."""
        public = self.private.public
        return text.removeprefix("0x").lower() in (public.hex(), public.removeprefix(self.suite.prefix).hex())


@dataclass(frozen=True, slots=True)
class Generation:
    """A keyset and its keys. Whoever holds it can sign: nobody but running exchanges and the workload MUST."""

    keyset: Keyset
    digest: str
    """In every response and receipt, so it is computed once."""
    receipt_key_id: str
    receipt_key: Ed25519PrivateKey = field(repr=False)
    e2ee_keys: tuple[E2eeKey, ...] = field(repr=False)

    @classmethod
    def born(cls, subject: str, not_after: int, tls_keys: tuple[TlsKey, ...]) -> Generation:
        """Make keys that nobody had before. `not_after` is in Unix seconds."""
        receipt_key = Ed25519PrivateKey.generate()
        public = receipt_key.public_key().public_bytes_raw()
        key_id = _key_id("router-receipt", public)
        e2ee_keys = tuple(E2eeKey.generate(suite) for suite in SUITES.values())
        keyset = keysets.build(
            subject=subject,
            not_after=not_after,
            receipt_keys={key_id: public},
            tls_keys=tls_keys,
            e2ee_keys=tuple(key.entry() for key in e2ee_keys),
        )
        return cls(keyset, keyset.digest, key_id, receipt_key, e2ee_keys)

    @property
    def receipt_public(self) -> str:
        """The raw public receipt key, hex: what the evidence claims."""
        return self.receipt_key.public_key().public_bytes_raw().hex()

    @property
    def not_after(self) -> int:
        return self.keyset.not_after


def _key_id(role: str, public: bytes) -> str:
    """Name a key so that no later one of the same role has its name."""
    return f"{role}-{hashlib.sha256(public).hexdigest()[:_ID_DIGITS]}"
