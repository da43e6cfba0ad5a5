"""Secrets that must be nowhere, and the search for them in any form in which bytes are written down."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec

from libs.policy.releases import KeyAlgorithm
from services.kms.keyring import Keyring

_WHITESPACE = b" \t\r\n"


class Secrets:
    """Named secrets of 16 bytes or more."""

    def __init__(self, named: Mapping[str, bytes]) -> None:
        if any(len(secret) < 16 for secret in named.values()):
            raise ValueError("a short secret would be found by chance")
        self.named = dict(named)
        self._forms = {name: _forms(secret) for name, secret in named.items()}

    def found_in(self, data: bytes) -> list[str]:
        """Return the names of the secrets that are in some bytes: raw, or as any text that people and programs make of
        them, over line breaks too.
        """
        unbroken = data.translate(None, _WHITESPACE)
        return [
            name for name, (raw, forms) in self._forms.items() if raw in data or any(form in unbroken for form in forms)
        ]


def secrets_of_root(root: bytes, released: Mapping[tuple[str, int], KeyAlgorithm]) -> Secrets:
    """A KMS's root, what it keeps to itself of what derives from it, and these keys, by name and epoch."""
    keyring = Keyring(root)
    keys = {
        f"{name} {epoch} {algorithm}": keyring.material(name, epoch, algorithm)
        for (name, epoch), algorithm in released.items()
    }
    return Secrets({"root": root, "CA key": scalar(keyring.ca_key), "state key": keyring.state_key, **keys})


def scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


def _forms(secret: bytes) -> tuple[bytes, set[bytes]]:
    """The secret itself, and the texts that hold it, wherever in an encoded whole it begins."""
    text = secret.hex().encode()
    shown = repr(secret)[2:-1].encode().translate(None, _WHITESPACE)
    forms = {text, text.upper(), shown, shown.replace(b"\\", b"\\\\")}
    forms |= {str(int.from_bytes(secret, "big")).encode(), ",".join(map(str, secret)).encode()}
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(bytes(before) + secret)
            # The first and the last character hold bits of the neighbours too.
            forms.add(whole[(before * 8 + 5) // 6 : (before + len(secret)) * 8 // 6])
    return secret, forms
