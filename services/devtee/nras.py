"""The development attestation service: responsible for signed tokens about GPU reports.

It answers as NVIDIA's service does (`/v4/attest/gpu` and `/v4/attest/switch`, claims 3.0), under an issuer and keys of
its own. No guest agent asks switches, so this machine has none; whoever tests makes reports of one as of a GPU. It
states what `findings` finds. A `TokenShape` overrides that with other claims as data, for tests of those who judge.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.errors import MeshError
from services.devtee.findings import (
    CLAIMS_VERSION,
    AttestationRequestInvalid,
    PostedReport,
    gpu_claims,
    switch_claims,
)
from services.devtee.gpu import parse_signer, sign_raw, signer_document
from services.devtee.token_keys import SigningKey, TokenAuthority

ISSUER = "https://nras.devtee.invalid"
ARCHITECTURE = "HOPPER"
SWITCH_ARCHITECTURE = "LS10"
TOKEN_SECONDS = 3600
ROTATE_AFTER_SECONDS = 86400
# Takes a claim away where a `TokenShape` overrides one.
ABSENT = object()

_BACKDATE_SECONDS = 120
_MAX_GPUS = 16


@dataclass(frozen=True, slots=True)
class TokenShape:
    """How a bundle differs from what the service found. Times in Unix seconds. `ABSENT` removes a claim."""

    issuer: str = ISSUER
    lifetime_seconds: int = TOKEN_SECONDS
    overall: Mapping[str, Any] = field(default_factory=dict)
    """Claims of the overall token."""
    devices: Mapping[str, Any] = field(default_factory=dict)
    """Claims of every device's token."""
    chains: Mapping[str, Any] = field(default_factory=dict)
    """Claims about every certificate chain of every device."""
    switches: tuple[str, ...] = ()
    """UEIDs of NVSwitches to vouch for, unseen."""


@dataclass(frozen=True, slots=True)
class Nras:
    """A token service for devices under one root."""

    authority: TokenAuthority
    signing: SigningKey
    device_root: x509.Certificate
    earlier: tuple[SigningKey, ...] = ()
    """Keys that sign no more and whose tokens are still about; they need not survive a restart."""

    @classmethod
    def create(cls, device_root: x509.Certificate, now: int) -> Nras:
        """Make a fresh authority and signing key. `now` is in Unix seconds."""
        authority = TokenAuthority.create(now)
        return cls(authority, authority.certify(now), device_root)

    def rotated(self, now: int) -> Nras:
        """The same service with a fresh signing key. Earlier ones are published for as long as they are certified."""
        earlier = tuple(key for key in (self.signing, *self.earlier) if now < key.ends_at)
        return Nras(self.authority, self.authority.certify(now), self.device_root, earlier)

    def encode(self) -> bytes:
        """Everything that must survive a restart, secret keys included."""
        root = self.device_root.public_bytes(serialization.Encoding.PEM)
        return jcs.dumps(
            {
                **signer_document(self.signing.signer),
                "key_id": self.key_id,
                "authority": self.authority.document(),
                "device_root": root.decode(),
            }
        )

    @classmethod
    def decode(cls, data: bytes, now: int) -> Nras:
        """Read `encode`'s bytes. Raises `JsonMalformed`, `KeyError`, `TypeError` or `ValueError` for others.

        A service from before keys were certified keeps its key and gets an authority that certifies it at `now`.
        """
        document = jcs.loads_object(data)
        device_root = x509.load_pem_x509_certificate(_pem(document["device_root"]))
        if "authority" in document:
            authority = TokenAuthority.parse(document["authority"])
            signer = parse_signer(document)
            return cls(authority, SigningKey(signer, document["key_id"], authority.issuing.certificate), device_root)
        authority = TokenAuthority.create(now)
        key = serialization.load_pem_private_key(_pem(document["key"]), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
            raise ValueError("a key on the curve P-384 is expected")
        return cls(authority, authority.certify(now, key, document["key_id"]), device_root)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return self.signing.signer.key

    @property
    def key_id(self) -> str:
        return self.signing.key_id

    def jwks(self) -> dict[str, Any]:
        """The key set, as `/.well-known/jwks.json` publishes it."""
        return {"keys": [key.jwk() for key in (self.signing, *self.earlier)]}

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token in compact form, ES384."""
        header = {"kid": self.key_id, "alg": "ES384"}
        signed = ".".join(_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
        return f"{signed}.{_base64url(sign_raw(self.key, signed.encode()))}"

    def attest(
        self, posted: Sequence[PostedReport], nonce: bytes, now: int, shape: TokenShape | None = None
    ) -> list[Any]:
        """Verify the reports and return the bundle that says what was found. Raises `AttestationRequestInvalid`."""
        shape = shape or TokenShape()
        found = {f"GPU-{number}": gpu_claims(report, nonce, self.device_root) for number, report in enumerate(posted)}
        found |= {f"SWITCH-{number}": switch_claims(ueid) for number, ueid in enumerate(shape.switches)}
        return self._bundle(found, nonce, now, shape)

    def attest_switches(self, posted: Sequence[PostedReport], nonce: bytes, now: int) -> list[Any]:
        """Verify switches' reports as `attest` does GPUs'. Raises `AttestationRequestInvalid`."""
        found = {f"SWITCH-{number}": self._switch(report, nonce) for number, report in enumerate(posted)}
        return self._bundle(found, nonce, now, TokenShape())

    def _switch(self, posted: PostedReport, nonce: bytes) -> dict[str, Any]:
        seen = gpu_claims(posted, nonce, self.device_root)
        verified = (f"x-nvidia-gpu-attestation-report-{end}" for end in ("signature-verified", "nonce-match"))
        if not all(seen[name] for name in verified):
            raise AttestationRequestInvalid("a switch's report is not its own, or answers another nonce")
        return switch_claims(seen["ueid"], is_good=seen["measres"] == "success")

    def _bundle(self, found: Mapping[str, dict[str, Any]], nonce: bytes, now: int, shape: TokenShape) -> list[Any]:
        common = {
            "iss": shape.issuer,
            "iat": now,
            "nbf": now - _BACKDATE_SECONDS,
            "exp": now + shape.lifetime_seconds,
            "eat_nonce": nonce.hex(),
        }
        tokens = {
            name: self.sign({**common, "jti": secrets.token_hex(16), **_changed(claims, shape)})
            for name, claims in found.items()
        }
        overall = {
            **common,
            "jti": secrets.token_hex(16),
            "sub": "NVIDIA-PLATFORM-ATTESTATION",
            "x-nvidia-ver": CLAIMS_VERSION,
            "x-nvidia-overall-att-result": all(claims["measres"] == "success" for claims in found.values()),
            "submods": {
                name: ["DIGEST", ["SHA-256", sha256(token.encode()).hexdigest()]] for name, token in tokens.items()
            },
        }
        return [["JWT", self.sign(_override(overall, shape.overall))], tokens]


class Rotating:
    """A token service that takes another signing key every day, as NVIDIA's does."""

    def __init__(self, nras: Nras) -> None:
        self._current = nras

    def at(self, now: int) -> Nras:
        """The service at `now`, in Unix seconds. A clock that went back also gets a new key."""
        if not 0 <= now - self._current.signing.issued_at < ROTATE_AFTER_SECONDS:
            self._current = self._current.rotated(now)
        return self._current


def routes(nras: Nras, clock: Callable[[], int]) -> list[web.RouteDef]:
    """The service's endpoints, to be added to an application, whose own limit bounds a body."""
    rotating = Rotating(nras)

    async def attest(request: web.Request) -> web.Response:
        about_switches = request.path.endswith("/switch")
        try:
            posted, nonce = read_request(await request.read(), SWITCH_ARCHITECTURE if about_switches else ARCHITECTURE)
            now = clock()
            service = rotating.at(now)
            verify = service.attest_switches if about_switches else service.attest
            return web.json_response(await asyncio.to_thread(verify, posted, nonce, now))
        except MeshError as error:
            return web.json_response({"error": str(error)}, status=400)

    async def jwks(_request: web.Request) -> web.Response:
        return web.json_response(rotating.at(clock()).jwks())

    return [
        web.post("/v4/attest/gpu", attest),
        web.post("/v4/attest/switch", attest),
        web.get("/.well-known/jwks.json", jwks),
    ]


def read_request(body: bytes, architecture: str = ARCHITECTURE) -> tuple[list[PostedReport], bytes]:
    """Read the JSON that NVIDIA's SDK posts. Raises `AttestationRequestInvalid`."""
    try:
        request = jcs.loads_object(body)
        if request["arch"] != architecture or request["claims_version"] != CLAIMS_VERSION:
            raise AttestationRequestInvalid(f"only {architecture} devices with claims {CLAIMS_VERSION} are attested")
        posted = [
            PostedReport(
                base64.b64decode(entry["evidence"], validate=True),
                base64.b64decode(entry["certificate"], validate=True),
            )
            for entry in request["evidence_list"]
        ]
        nonce = bytes.fromhex(request["nonce"])
    except (jcs.JsonMalformed, KeyError, TypeError, ValueError, Base64Error) as error:
        raise AttestationRequestInvalid("the request is not one for GPU tokens") from error
    if len(nonce) != 32 or not 1 <= len(posted) <= _MAX_GPUS:
        raise AttestationRequestInvalid(f"a request has a nonce of 32 bytes and 1 to {_MAX_GPUS} reports")
    return posted, nonce


def _changed(claims: Mapping[str, Any], shape: TokenShape) -> dict[str, Any]:
    chains = {
        name: _override(value, shape.chains) if name.endswith("-cert-chain") and isinstance(value, dict) else value
        for name, value in claims.items()
    }
    return _override(chains, shape.devices)


def _override(claims: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**claims, **changes}.items() if value is not ABSENT}


def _pem(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("PEM is text")
    return text.encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
