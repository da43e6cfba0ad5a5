"""Responsible for attestation tokens: who signed a detached EAT bundle, when, for which challenge, over which devices.

The form is the one in which NVIDIA's Remote Attestation Service (NRAS) answers: `[["JWT", overall], {"GPU-0": jwt}]`.
GPUs and NVSwitches have an endpoint each, so a bundle is about one kind of device. The overall token holds the SHA-256
of each device's token text, and every token is signed. A signature has a twin, so a bundle's bytes are no identity of
it. What the claims say of a device is judged in `claims`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.nvidia.keys import Keyring
from libs.tee.steps import Note, about, ignore

NONCE_BYTES = 32
MAX_DEVICES = 16
# A device's token with claims 3.0 has about 4 KiB.
MAX_TOKEN_BYTES = 16 * 1024
# By how much the issuer's clock may be ahead of ours.
CLOCK_SKEW_SECONDS = 60
# Kinds of devices, as a bundle's names of devices begin.
GPU = "GPU"
SWITCH = "SWITCH"
SUBJECT = "NVIDIA-PLATFORM-ATTESTATION"

_ALGORITHM = "ES384"
# Each of the two numbers in an ES384 signature.
_HALF_BYTES = 48
# NRAS sends `kid` and `alg`. Whatever else a header may say (`crit`, `b64`, `jku`, `x5c`) could change its meaning.
_HEADER_MEMBERS = frozenset({"alg", "kid", "typ"})
_DEVICE_NAME = re.compile(r"(?:GPU|SWITCH)-(?:0|[1-9][0-9]?)")
_SEGMENT = re.compile(r"[A-Za-z0-9_-]*")
# NRAS and NVIDIA's local verifier spell the digest's name differently.
_DIGEST_NAMES = ("SHA-256", "SHA256")


class TokenMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "GPU_TOKEN_MALFORMED"


class TokenWithoutGpu(MeshError):
    """The bundle speaks of no GPU at all."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_WITHOUT_GPU"


class TokenDeviceMisplaced(MeshError):
    """A bundle about GPUs speaks of a switch, or the other way round."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_DEVICE_MISPLACED"


class TokenUnsigned(MeshError):
    """The token is a claim and no evidence: nobody signed it, as when the machine's own verifier wrote it."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_UNSIGNED"


class TokenAlgorithmNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_ALGORITHM_NOT_ALLOWED"


class TokenIssuersDiffer(MeshError):
    """A device's token comes from another issuer than the overall token."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_ISSUERS_DIFFER"


class TokenSignatureInvalid(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_SIGNATURE_INVALID"


class TokenFromFuture(MeshError):
    """The token is not valid yet: check the clock."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_FROM_FUTURE"


class TokenExpired(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_EXPIRED"


class TokenTooOld(MeshError):
    """The issuer would still stand by the token; policy asks for a younger one."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_TOO_OLD"


class GpuNonceMismatch(MeshError):
    """The devices answered another challenge."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_NONCE_MISMATCH"


class TokenSubjectUnknown(MeshError):
    """The overall token is about something else than a platform's devices."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_TOKEN_SUBJECT_UNKNOWN"


class SubmoduleMismatch(MeshError):
    """The device tokens are not exactly those that the overall token lists."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_SUBMODULE_MISMATCH"


@dataclass(frozen=True, slots=True)
class DetachedEat:
    """A bundle of the right shape; nothing in it is verified."""

    overall: str
    # Device name ("GPU-0", "SWITCH-0") to its token.
    submodules: Mapping[str, str]

    @classmethod
    def parse(cls, value: Any) -> DetachedEat:
        """Read the bundle from parsed JSON. Raises `TokenMalformed`."""
        match value:
            case [["JWT", str(overall)], dict(submodules)]:
                pass
            case _:
                raise TokenMalformed("a token bundle is a pair of an overall JWT and its device tokens")
        if not 1 <= len(submodules) <= MAX_DEVICES:
            raise TokenMalformed(f"a token bundle speaks of 1 to {MAX_DEVICES} devices")
        for name, token in submodules.items():
            if not isinstance(token, str) or _DEVICE_NAME.fullmatch(name) is None:
                raise TokenMalformed("a token bundle holds a token by device name, for example GPU-0")
        if any(len(token) > MAX_TOKEN_BYTES for token in (overall, *submodules.values())):
            raise TokenMalformed(f"a token has more than {MAX_TOKEN_BYTES} bytes")
        return cls(overall, dict(submodules))

    def to_json(self) -> list[Any]:
        return [["JWT", self.overall], dict(self.submodules)]


@dataclass(frozen=True, slots=True)
class VerifiedEat:
    """What a trusted issuer signed. Its verdicts are not judged yet."""

    issuer: str
    overall: Mapping[str, Any]
    # Device name to claims.
    devices: Mapping[str, Mapping[str, Any]]
    # Last unix second in which every token and every certificate of their keys holds.
    valid_until: int


@dataclass(frozen=True, slots=True)
class _Token:
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    # Empty where nobody signed.
    signature: bytes
    text: str


@dataclass(frozen=True, slots=True)
class _Signed:
    claims: Mapping[str, Any]
    key_valid_until: int | None


def verify_bundle(
    eat: DetachedEat,
    nonce: bytes,
    keyring: Keyring,
    maximum_age_seconds: int,
    now: int,
    note: Note = ignore,
    *,
    kind: str = GPU,
) -> VerifiedEat:
    """Prove that one issuer made the whole bundle for `nonce`, lately, and about devices of this kind only.

    Raises this module's errors and those of `keys`.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    note("devices", eat.submodules.keys(), kind)
    _judge_kind(eat, kind)
    notes = [about("overall token", note), *(about(f"token of {name}", note) for name in eat.submodules)]
    overall, *claims = signed = [
        _verify_signature(_read(token), keyring, each)
        for token, each in zip((eat.overall, *eat.submodules.values()), notes, strict=True)
    ]
    issuer = overall.claims["iss"]
    note("issuers of the devices' tokens", lambda: {each.claims["iss"] for each in claims}, issuer)
    if any(each.claims["iss"] != issuer for each in claims):
        raise TokenIssuersDiffer("a device's token comes from another issuer than the overall token")
    ends = [_judge_times(each.claims, maximum_age_seconds, now, its) for each, its in zip(signed, notes, strict=True)]
    ends += [each.key_valid_until for each in signed if each.key_valid_until is not None]
    for each, its in zip(signed, notes, strict=True):
        _judge_nonce(each.claims, nonce, its)
    note("subject", overall.claims.get("sub"), SUBJECT)
    if overall.claims.get("sub") != SUBJECT:
        raise TokenSubjectUnknown("the overall token is not about a platform's devices")
    _judge_digests(overall.claims, eat.submodules, note)
    devices = {name: each.claims for name, each in zip(eat.submodules, claims, strict=True)}
    return VerifiedEat(issuer, overall.claims, devices, min(ends))


def key_ids(eat: DetachedEat) -> frozenset[str]:
    """Return the ids of the keys that the tokens say they are signed with. Raises `TokenMalformed`; proves nothing."""
    found = set()
    for token in (eat.overall, *eat.submodules.values()):
        key_id = _read(token).header.get("kid")
        if not isinstance(key_id, str):
            raise TokenMalformed("a token does not name its key")
        found.add(key_id)
    return frozenset(found)


def ueids(eat: DetachedEat) -> frozenset[str]:
    """Return the UEIDs that the devices' tokens state. Raises `TokenMalformed`; proves nothing."""
    stated = (_read(token).claims.get("ueid") for token in eat.submodules.values())
    return frozenset(ueid for ueid in stated if isinstance(ueid, str))


def _judge_kind(eat: DetachedEat, kind: str) -> None:
    of_kind = [name for name in eat.submodules if name.startswith(f"{kind}-")]
    if kind == GPU and not of_kind:
        raise TokenWithoutGpu("the token bundle speaks of no GPU")
    if len(of_kind) != len(eat.submodules):
        raise TokenDeviceMisplaced("the token bundle speaks of a device that has a bundle of its own")


def _read(text: str) -> _Token:
    segments = text.split(".")
    if len(segments) != 3:
        raise TokenMalformed("a token has a header, claims and a signature")
    header, claims = _object(segments[0]), _object(segments[1])
    if header.keys() - _HEADER_MEMBERS:
        raise TokenMalformed("a token's header has members that are not known")
    return _Token(header, claims, signature=_decoded(segments[2]), text=text)


def _object(segment: str) -> dict[str, Any]:
    try:
        return jcs.loads_object(_decoded(segment))
    except jcs.JsonMalformed as error:
        raise TokenMalformed("a token's header and claims are strict JSON objects") from error


def _decoded(segment: str) -> bytes:
    """Decode base64url in its one form: no padding, no stray bits."""
    if _SEGMENT.fullmatch(segment) is None or len(segment) % 4 == 1:
        raise TokenMalformed("a token's parts are base64url without padding")
    data = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if urlsafe_b64encode(data).rstrip(b"=").decode() != segment:
        raise TokenMalformed("a token's parts are base64url in canonical form")
    return data


def _verify_signature(token: _Token, keyring: Keyring, note: Note) -> _Signed:
    """Which key may have signed is policy's to say: the token only names it."""
    algorithm = token.header.get("alg")
    note("algorithm", algorithm, _ALGORITHM)
    note("signature, bytes", len(token.signature), 2 * _HALF_BYTES)
    if algorithm == "none" or not token.signature:
        raise TokenUnsigned("the token is not signed: let the vendor's attestation service issue it")
    if algorithm != _ALGORITHM:
        raise TokenAlgorithmNotAllowed(f"a token is signed with {_ALGORITHM} and nothing else")
    signing = keyring.signing_key(token.claims.get("iss"), token.header.get("kid"), note)
    signed, _, _ = token.text.rpartition(".")
    # RFC 7518 section 3.4: the two numbers of the signature one after the other, big-endian.
    r, s = (int.from_bytes(half, "big") for half in (token.signature[:_HALF_BYTES], token.signature[_HALF_BYTES:]))
    try:
        if len(token.signature) != 2 * _HALF_BYTES:
            raise InvalidSignature
        signing.key.verify(encode_dss_signature(r, s), signed.encode(), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise TokenSignatureInvalid("a token's signature does not hold") from error
    return _Signed(token.claims, signing.valid_until)


def _judge_times(claims: Mapping[str, Any], maximum_age_seconds: int, now: int, note: Note) -> int:
    """Return the last second in which the token holds and is young enough."""
    try:
        issued_at = shape.integer(claims.get("iat"), "iat")
        expires_at = shape.integer(claims.get("exp"), "exp")
        not_before = shape.integer(claims.get("nbf", issued_at), "nbf")
    except ValueError as error:
        raise TokenMalformed(f"a token states no usable time: {error}") from error
    note("age, s", now - issued_at, lambda: f"{-CLOCK_SKEW_SECONDS} to {maximum_age_seconds}")
    note("not before, unix s", not_before, lambda: f"{now + CLOCK_SKEW_SECONDS} or earlier")
    note("expiry, unix s", expires_at, lambda: f"later than {now}")
    if max(issued_at, not_before) > now + CLOCK_SKEW_SECONDS:
        raise TokenFromFuture("a token is from the future: check the clock")
    if now >= expires_at:
        raise TokenExpired("a token has expired: ask for another")
    if now - issued_at > maximum_age_seconds:
        raise TokenTooOld("a token is older than policy accepts: ask for another")
    return min(expires_at - 1, issued_at + maximum_age_seconds)


def _judge_nonce(claims: Mapping[str, Any], nonce: bytes, note: Note) -> None:
    stated = claims.get("eat_nonce")
    note("nonce", stated, nonce)
    if not isinstance(stated, str) or not stated.isascii() or not hmac.compare_digest(stated, nonce.hex()):
        raise GpuNonceMismatch("a token answers another challenge")


def _judge_digests(overall: Mapping[str, Any], submodules: Mapping[str, str], note: Note) -> None:
    listed = overall.get("submods")
    note("devices that the overall token lists", _names(listed), submodules.keys())
    if not isinstance(listed, dict) or listed.keys() != submodules.keys():
        raise SubmoduleMismatch("the overall token lists other devices than the bundle holds")
    for name, token in submodules.items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        note(f"digest of the token of {name}", listed[name], ["DIGEST", [_DIGEST_NAMES[0], digest]])
        if listed[name] not in [["DIGEST", [spelling, digest]] for spelling in _DIGEST_NAMES]:
            raise SubmoduleMismatch(f"the overall token lists another token for {name}")


def _names(listed: object) -> object:
    return listed.keys() if isinstance(listed, dict) else listed
