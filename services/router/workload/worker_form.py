"""It is responsible for what clients from before ACI ask for: reports and signatures as a dstack-vllm-proxy gives them.

Its keys are its own and are born here: no keyset lists them, and its quotes bind them and nothing of ACI's. No document
of ACI's is another one for it (appendix B).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.aci.encoding import is_hex
from libs.aci.receipt import parse
from libs.tee.keccak import keccak256
from libs.tee.signer_recovery import recover_signer
from services.router.errors import InvalidRequest
from services.router.workload.reports import Reports
from services.router.workload.workload import Workload

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1."""
_IDENTITY_BYTES = 32
_CHANNEL_BOUND = "2"
_VERSIONS = ("1", _CHANNEL_BOUND)


class SigningAlgoNotSupported(InvalidRequest):
    """Such workers sign by two algorithms."""

    type = "invalid_signing_algo"
    reason = "SIGNING_ALGO_NOT_SUPPORTED"


class SigningKey(Protocol):
    """One key of the form."""

    @property
    def address(self) -> bytes:
        """What names it in a quote: 20 or 32 bytes."""
        ...

    @property
    def public(self) -> bytes: ...

    def written(self) -> str:
        """Return the address as reports have it."""
        ...

    def sign(self, text: str) -> str:
        """Return the signature as clients read it."""
        ...


class EdKey:
    """Ed25519: the address is the key."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.address = self.public = self._key.public_key().public_bytes_raw()

    def written(self) -> str:
        return self.address.hex()

    def sign(self, text: str) -> str:
        return self._key.sign(text.encode()).hex()


class EthereumKey:
    """secp256k1, by an Ethereum address, signing as wallets do (EIP-191)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._key = key or ec.generate_private_key(ec.SECP256K1())
        public = self._key.public_key()
        self.public = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.address = keccak256(self.public[1:])[-20:]
        self._compressed = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)

    def written(self) -> str:
        return "0x" + self.address.hex()

    def sign(self, text: str) -> str:
        said = text.encode()
        digest: bytes = keccak256(b"\x19Ethereum Signed Message:\n" + str(len(said)).encode() + said)
        # By a library whose time does not tell of the key. It does not say which of two keys signed; the key does.
        signed = self._key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        r, s = utils.decode_dss_signature(signed)
        s = min(s, _ORDER - s)
        pair = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        parity = next(v for v in (27, 28) if recover_signer(digest, pair + bytes([v])) == self._compressed)
        return "0x" + (pair + bytes([parity])).hex()


class WorkerForm:
    """Makes reports and signatures in that form."""

    def __init__(self, workload: Workload, reports: Reports) -> None:
        self._workload = workload
        self._reports = reports
        self._keys: Mapping[str, SigningKey] = {"ecdsa": EthereumKey(), "ed25519": EdKey()}

    async def report(
        self, nonce: str | None, signing_algo: str | None, version: str | None, *, host: str = ""
    ) -> dict[str, Any]:
        """Return a report of this moment, to whoever talks to `host`: of version 2 it names the TLS key there. Raises
        `SigningAlgoNotSupported`, `InvalidRequest`, `ReportsBusy`.
        """
        algo, key = self._key(signing_algo)
        version = version or _VERSIONS[0]
        if version not in _VERSIONS:
            raise InvalidRequest(f"version must be one of {', '.join(_VERSIONS)}")
        fingerprint = self._tls_key(host) if version == _CHANNEL_BOUND else None
        challenge = _challenge(nonce)
        quoted = await self._reports.quoted(identity(key, fingerprint) + challenge)
        attestation = {
            "signing_address": key.written(),
            "signing_public_key": key.public.hex(),
            "signing_algo": algo,
            "request_nonce": challenge.hex(),
            "intel_quote": quoted.quote.quote.hex(),
            # A router has no GPU: the nodes' evidence stands in its sessions.
            "nvidia_payload": "",
            "event_log": quoted.event_log,
            "vm_config": quoted.quote.vm_config,
            "info": {"tcb_info": json.dumps({"app_compose": quoted.app_compose})},
            "version": int(version),
            **({} if fingerprint is None else {"tls_cert_fingerprint": fingerprint}),
        }
        return {**attestation, "all_attestations": [attestation]}

    def signature(self, receipt: bytes, signing_algo: str | None) -> dict[str, Any]:
        """Return the signature over the exchange of a receipt of this router's. Raises `SigningAlgoNotSupported`."""
        algo, key = self._key(signing_algo)
        signed = parse(receipt)
        hashed = (signed.received.body_hash, signed.returned.body_hash)
        text = ":".join(digest.removeprefix("sha256:") for digest in hashed)
        return {
            "text": text,
            "signature": key.sign(text),
            "signing_address": key.written(),
            "signing_algo": algo,
            "receipt": json.loads(receipt),
        }

    def _tls_key(self, host: str) -> str:
        """The key that a listener shows to who asks for this host. Raises `InvalidRequest`."""
        shown = self._workload.keyset.key_for(host)
        if shown is None:
            raise InvalidRequest("version 2 names the TLS key of a host, and the keyset lists none for this one")
        return shown.spki_sha256

    def _key(self, signing_algo: str | None) -> tuple[str, SigningKey]:
        algo = signing_algo or "ecdsa"
        key = self._keys.get(algo)
        if key is None:
            raise SigningAlgoNotSupported(f"signing_algo must be one of {', '.join(self._keys)}")
        return algo, key


def identity(key: SigningKey, fingerprint: str | None) -> bytes:
    """What a quote says of the key, 32 bytes: padded by itself, or hashed with the TLS key that answers come over."""
    if fingerprint is None:
        return key.address.ljust(_IDENTITY_BYTES, b"\0")
    return hashlib.sha256(key.address + bytes.fromhex(fingerprint)).digest()


def _challenge(nonce: str | None) -> bytes:
    """32 bytes: the nonce, or the hash of one in another form, or a fresh one."""
    if nonce is None:
        return secrets.token_bytes(32)
    return bytes.fromhex(nonce) if is_hex(nonce.lower(), 32) else hashlib.sha256(nonce.encode()).digest()
