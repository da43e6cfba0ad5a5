"""The development attestation service: responsible for verifying GPU reports and for tokens about them.

It answers as NVIDIA's service does (`/v4/attest/gpu` and `/v4/attest/switch`, claims 3.0), under an issuer and keys of
its own. No guest agent asks switches, so this machine has none; whoever tests makes reports of one as of a GPU. It
reads and verifies the posted reports with code of its own, so maker and relying verifier cannot share a mistake, and
states what it found. A `TokenShape` overrides that with other claims as data, for tests of those who judge.
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
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from libs import jcs
from libs.errors import Code, MeshError
from services.devtee.gpu import (
    DRIVER_VERSION,
    FWID_EXTENSION,
    MEASUREMENTS,
    VBIOS_VERSION,
    parse_signer,
    reference_measurement,
    sign_raw,
    signer_document,
)
from services.devtee.token_keys import SigningKey, TokenAuthority

ISSUER = "https://nras.devtee.invalid"
ARCHITECTURE = "HOPPER"
SWITCH_ARCHITECTURE = "LS10"
CLAIMS_VERSION = "3.0"
TOKEN_SECONDS = 3600
ROTATE_AFTER_SECONDS = 86400
# Takes a claim away where a `TokenShape` overrides one.
ABSENT = object()

_BACKDATE_SECONDS = 120
_OEM_ID = "5703"
_MAX_GPUS = 16
_CERTIFICATE_END = "2035-01-01T00:00:00Z"


class AttestationRequestInvalid(MeshError):
    """The request is not one for Hopper GPUs with claims 3.0, or its evidence cannot be read."""

    code = Code.INVALID_ARGUMENT
    reason = "ATTESTATION_REQUEST_INVALID"


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
class PostedReport:
    report: bytes
    certificate_chain: bytes
    """PEM, leaf first."""


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
        found = {f"GPU-{number}": _gpu_claims(report, nonce, self.device_root) for number, report in enumerate(posted)}
        found |= {f"SWITCH-{number}": _switch_claims(ueid) for number, ueid in enumerate(shape.switches)}
        return self._bundle(found, nonce, now, shape)

    def attest_switches(self, posted: Sequence[PostedReport], nonce: bytes, now: int) -> list[Any]:
        """Verify switches' reports as `attest` does GPUs'. Raises `AttestationRequestInvalid`."""
        found = {f"SWITCH-{number}": self._switch(report, nonce) for number, report in enumerate(posted)}
        return self._bundle(found, nonce, now, TokenShape())

    def _switch(self, posted: PostedReport, nonce: bytes) -> dict[str, Any]:
        seen = _gpu_claims(posted, nonce, self.device_root)
        verified = (f"x-nvidia-gpu-attestation-report-{end}" for end in ("signature-verified", "nonce-match"))
        if not all(seen[name] for name in verified):
            raise AttestationRequestInvalid("a switch's report is not its own, or answers another nonce")
        return _switch_claims(seen["ueid"], is_good=seen["measres"] == "success")

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


@dataclass(frozen=True, slots=True)
class _Reading:
    """A report cut at the places where SPDM puts its parts."""

    nonce: bytes
    measurements: list[bytes]
    opaque: dict[int, bytes]
    signed: bytes
    signature: bytes

    @classmethod
    def of(cls, report: bytes) -> _Reading:
        signed, signature = report[:-96], report[-96:]
        record_bytes = int.from_bytes(signed[42:45], "little")
        record = signed[45 : 45 + record_bytes]
        size = 55
        measurements = [record[at + 7 : at + size] for at in range(0, len(record), size)]
        opaque, rest = {}, signed[45 + record_bytes + 34 :]
        while len(rest) >= 4:
            kind, length = int.from_bytes(rest[:2], "little"), int.from_bytes(rest[2:4], "little")
            opaque[kind], rest = rest[4 : 4 + length], rest[4 + length :]
        return cls(signed[4:36], measurements, opaque, signed, signature)


def _gpu_claims(posted: PostedReport, nonce: bytes, root: x509.Certificate) -> dict[str, Any]:
    """Verify one report and say what was found; a report that cannot be tied to a device of ours is refused."""
    reading = _Reading.of(posted.report)
    leaf, model = _device(posted.certificate_chain, root)
    driver = reading.opaque.get(3, b"").rstrip(b"\0").decode("ascii", "replace")
    vbios = _vbios(reading.opaque.get(6, b""))
    expected = [reference_measurement(index) for index in range(1, MEASUREMENTS + 1)]
    pairs = zip(expected, reading.measurements, strict=False)
    mismatches = [index for index, (golden, runtime) in enumerate(pairs, 1) if golden != runtime]
    checks = {
        "attestation-report-nonce-match": reading.nonce == nonce,
        "attestation-report-signature-verified": _is_signed(leaf, reading),
        "attestation-report-cert-chain-fwid-match": _fwid(leaf) == reading.opaque.get(20),
        "driver-rim-version-match": driver == DRIVER_VERSION,
        "vbios-rim-version-match": vbios == VBIOS_VERSION,
    }
    is_good = all(checks.values()) and len(reading.measurements) == MEASUREMENTS and not mismatches
    always = ("arch-check", "attestation-report-parsed", "vbios-index-no-conflict", *_rim("driver"), *_rim("vbios"))
    return {
        **_common_claims("gpu", is_good),
        "ueid": str(leaf.serial_number),
        "hwmodel": model,
        "x-nvidia-gpu-driver-version": driver,
        "x-nvidia-gpu-vbios-version": vbios,
        "x-nvidia-mismatch-measurement-records": [{"index": index} for index in mismatches] or None,
        **{f"x-nvidia-gpu-{name}": True for name in always},
        **{f"x-nvidia-gpu-{name}": holds for name, holds in checks.items()},
        **{f"x-nvidia-gpu-{name}-cert-chain": _chain() for name in ("attestation-report", "driver-rim", "vbios-rim")},
    }


def _switch_claims(ueid: str, *, is_good: bool = True) -> dict[str, Any]:
    ends = ("parsed", "signature-verified", "nonce-match", "cert-chain-fwid-match")
    always = ("arch-check", *(f"attestation-report-{end}" for end in ends), *_rim("bios"), "bios-rim-version-match")
    return {
        **_common_claims("switch", is_good),
        "ueid": ueid,
        "hwmodel": "DEV_10 A01 FSP BROM",
        "x-nvidia-switch-bios-version": VBIOS_VERSION,
        "x-nvidia-mismatch-measurement-records": None,
        **{f"x-nvidia-switch-{name}": True for name in always},
        **{f"x-nvidia-switch-{name}-cert-chain": _chain() for name in ("attestation-report", "bios-rim")},
    }


def _common_claims(kind: str, is_good: bool) -> dict[str, Any]:
    # As NVIDIA does: what a device with other measurements does about debugging and secure boot is unknown.
    return {
        "oemid": _OEM_ID,
        "measres": "success" if is_good else "fail",
        "secboot": True if is_good else None,
        "dbgstat": "disabled" if is_good else None,
        f"x-nvidia-{kind}-claims-version": CLAIMS_VERSION,
        "x-nvidia-attestation-warning": None,
    }


def _rim(name: str) -> tuple[str, ...]:
    return tuple(f"{name}-rim-{end}" for end in ("fetched", "signature-verified", "measurements-available"))


def _chain() -> dict[str, Any]:
    return {
        "x-nvidia-cert-status": "valid",
        "x-nvidia-cert-expiration-date": _CERTIFICATE_END,
        "x-nvidia-cert-ocsp-status": "good",
        "x-nvidia-cert-ocsp-response-valid": True,
        "x-nvidia-cert-ocsp-nonce-matches": True,
        "x-nvidia-cert-revocation-reason": None,
    }


def _device(chain: bytes, root: x509.Certificate) -> tuple[x509.Certificate, str]:
    """Return the leaf under our root, and the model that its boot ROM's certificate names."""
    try:
        certificates = x509.load_pem_x509_certificates(chain)
        for subject, issuer in zip(certificates, [*certificates[1:], root], strict=True):
            subject.verify_directly_issued_by(issuer)
        boot_rom = certificates[1].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return certificates[0], str(boot_rom[0].value)
    except (ValueError, TypeError, IndexError, InvalidSignature) as error:
        raise AttestationRequestInvalid("the evidence is not of a development GPU of this service") from error


def _is_signed(leaf: x509.Certificate, reading: _Reading) -> bool:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    r, s = (int.from_bytes(part, "big") for part in (reading.signature[:48], reading.signature[48:]))
    try:
        key.verify(utils.encode_dss_signature(r, s), reading.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def _fwid(leaf: x509.Certificate) -> bytes | None:
    try:
        extension = leaf.extensions.get_extension_for_oid(FWID_EXTENSION).value
    except x509.ExtensionNotFound:
        return None
    return extension.value[-48:] if isinstance(extension, x509.UnrecognizedExtension) else None


def _vbios(value: bytes) -> str:
    return ".".join(f"{byte:02X}" for byte in (*value[:4][::-1], *value[4:5]))


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
