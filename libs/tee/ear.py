"""Responsible for appraisals as signed results: JWTs in the form of EAT Attestation Results (draft-ietf-rats-ear).

The claim names are those of the profile that today's readers know; later drafts write underscores for dots. What the
trustworthiness vector says follows AR4SI (draft-ietf-rats-ar4si); `_cpu_vector` and `_gpu_vector` say why each value.
A claim that was not evaluated is absent, which AR4SI reads as "none".

Only the attestation service's certificates count as signers, though every member of the mesh has one of the same CA.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.appraisal import Appraisal
from libs.tee.workload import Status

PROFILE = "tag:github.com,2023:veraison/ear"
MAX_EAR_BYTES = 2 * 1024 * 1024
_MAX_CERTIFICATE_BYTES = 16 * 1024
_ALGORITHM = "ES256"
_TYPE = "eat+jwt"
_HEADER_MEMBERS = frozenset({"alg", "typ", "x5c"})
_VERIFIER = {"developer": "teemesh", "build": "teemesh 0.1.0"}
_CLOCK_SKEW_SECONDS = 60
_SIGNER = re.compile(r"spiffe://[a-z0-9][a-z0-9.-]{0,200}/attestation/[a-z0-9][a-z0-9-]{0,39}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")

# Values of AR4SI, section "Specific Claims".
_APPROVED = 2
_APPROVED_AT_BOOT = 3
_KNOWN_VULNERABILITIES = 32
_CONTRAINDICATED = 96

AFFIRMING = "affirming"
WARNING = "warning"
CONTRAINDICATED = "contraindicated"


class EarMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "EAR_MALFORMED"


class EarAlgorithmNotAllowed(MeshError):
    """The result is signed in another way than ES256, or not at all."""

    code = Code.PERMISSION_DENIED
    reason = "EAR_ALGORITHM_NOT_ALLOWED"


class EarSignerNotTrusted(MeshError):
    """The signer's certificate is not a current one of an attestation service under this mesh's CA."""

    code = Code.PERMISSION_DENIED
    reason = "EAR_SIGNER_NOT_TRUSTED"


class EarSignatureInvalid(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "EAR_SIGNATURE_INVALID"


class EarNotCurrent(MeshError):
    """The result has expired, or was issued later than clock skew explains."""

    code = Code.PERMISSION_DENIED
    reason = "EAR_NOT_CURRENT"


class EarNonceMismatch(MeshError):
    """The result answers another challenge."""

    code = Code.PERMISSION_DENIED
    reason = "EAR_NONCE_MISMATCH"


@dataclass(frozen=True, slots=True)
class Signer:
    """The attestation service as it signs now: a P-256 key and its certificate, DER."""

    spiffe_id: str
    key: ec.EllipticCurvePrivateKey
    certificate_der: bytes
    # Unix seconds: no result outlives the certificate that proves it.
    certificate_until: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What was judged, and by what."""

    appraisal: Appraisal
    # Of the challenge that the evidence answers.
    nonce: bytes
    policy_digest: bytes
    # Whether policy's vendor roots are for development: then nothing about hardware is proven.
    development: bool
    # Names the record in the archive from which the verdict can be repeated.
    record_digest: bytes


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """A verified result: an attestation service of this mesh said so, and it still holds."""

    issuer: str
    # Unix seconds.
    issued_at: int
    expires_at: int
    nonce: bytes
    # Tier of each submodule: "cpu" always, "gpu" where GPUs were proven.
    status: Mapping[str, str]
    # As `Appraisal.to_json` writes it.
    appraisal: Mapping[str, Any]
    claims: Mapping[str, Any]


def sign_ear(subject: Subject, signer: Signer) -> str:
    """Sign a verdict, compact JWS. It holds as long as verdict and certificate do."""
    appraisal = subject.appraisal
    policy_id = f"policy/{appraisal.policy_version}/sha256/{subject.policy_digest.hex()}"
    submods = {"cpu": _submod(_cpu_vector(appraisal, subject.development), policy_id)}
    if appraisal.gpu is not None:
        submods["gpu"] = _submod(_gpu_vector(subject.development), policy_id)
    payload = {
        "eat_profile": PROFILE,
        "iss": signer.spiffe_id,
        "iat": appraisal.appraised_at,
        "exp": min(appraisal.valid_until, signer.certificate_until),
        "eat_nonce": _encode(subject.nonce),
        "ear.verifier-id": _VERIFIER,
        "submods": submods,
        "teemesh": {
            "appraisal": appraisal.to_json(),
            "claims": appraisal.claims.to_json(),
            "evidence_digest": appraisal.evidence_digest.hex(),
            "record_digest": subject.record_digest.hex(),
            "development": subject.development,
        },
    }
    header = {"typ": _TYPE, "x5c": [base64.b64encode(signer.certificate_der).decode()]}
    return PyJWS(algorithms=[_ALGORITHM]).encode(jcs.dumps(payload), signer.key, _ALGORITHM, header, sort_headers=True)


def verify_ear(token: str, ca_spki_der: bytes, now: int, *, nonce: bytes | None = None) -> AttestationResult:
    """Prove a result under the mesh CA's key, and that it answers `nonce` where one is given.

    Raises the errors of this module. The tiers are the verifier's word; whoever relies on them decides which suffice.
    """
    header, payload = _parts(token)
    if header.get("alg") != _ALGORITHM:
        raise EarAlgorithmNotAllowed(f"results are signed with {_ALGORITHM}")
    issuer, key = _verify_signer(_certificate(header), ca_spki_der, now)
    try:
        PyJWS(algorithms=[_ALGORITHM]).decode(token, key, algorithms=[_ALGORITHM])
    except PyJWTError as error:
        raise EarSignatureInvalid("the result's signature does not verify") from error
    result = _read(payload)
    if result.issuer != issuer:
        raise EarSignerNotTrusted("the result names another issuer than its signer")
    if result.issued_at > now + _CLOCK_SKEW_SECONDS or now >= result.expires_at:
        raise EarNotCurrent("the result has expired or is from the future: ask for a new one, or check the clock")
    if nonce is not None and not hmac.compare_digest(result.nonce, nonce):
        raise EarNonceMismatch("the result answers another challenge")
    return result


def _cpu_vector(appraisal: Appraisal, development: bool) -> dict[str, int]:
    status = appraisal.tcb_status
    sound = appraisal.claims.tcb_up_to_date.status is Status.ASSERTED and not appraisal.advisories
    return {
        # Step 9: the machine is known by its own id, and not revoked.
        "instance-identity": _APPROVED,
        # Step 7 and 8: the app-compose is an approved one. The vendor says when the platform's settings expose a flaw.
        "configuration": _KNOWN_VULNERABILITIES if "Configuration" in status else _APPROVED,
        # Step 6 and 8: firmware, kernel and app-compose as booted are approved; what was loaded later was not seen.
        "executables": _APPROVED_AT_BOOT,
        # Step 2 and 3. Genuine hardware behind the vendor's newest patches is what "known vulnerabilities" is for; a
        # development root certifies software.
        "hardware": _CONTRAINDICATED if development else _APPROVED if sound else _KNOWN_VULNERABILITIES,
        # Step 4: a guest that its host cannot debug or move. Software has no such memory.
        "runtime-opaque": _CONTRAINDICATED if development else _APPROVED,
    }


def _gpu_vector(development: bool) -> dict[str, int]:
    """Step 10 refuses everything but the best, so there is no warning here."""
    return {
        # The device is known by its UEID, and neither it nor its certificates are revoked.
        "instance-identity": _APPROVED,
        # Not in debug, and booted securely.
        "configuration": _APPROVED,
        # Driver and VBIOS are the vendor's, by its reference values.
        "executables": _APPROVED_AT_BOOT,
        "hardware": _CONTRAINDICATED if development else _APPROVED,
    }


def _submod(vector: Mapping[str, int], policy_id: str) -> dict[str, Any]:
    return {
        "ear.status": _tier(max(vector.values())),
        "ear.trustworthiness-vector": dict(vector),
        "ear.appraisal-policy-id": policy_id,
    }


def _tier(worst: int) -> str:
    if worst >= _CONTRAINDICATED:
        return CONTRAINDICATED
    return WARNING if worst >= _KNOWN_VULNERABILITIES else AFFIRMING


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if len(token) > MAX_EAR_BYTES:
        raise EarMalformed(f"the result has {len(token)} characters, at most {MAX_EAR_BYTES} are read")
    parts = token.split(".", 3)
    if len(parts) != 3:
        raise EarMalformed("a result is a compact JWS: header, payload and signature")
    try:
        header, payload = (jcs.loads_object(_decode(part)) for part in parts[:2])
        return dict(shape.members(header, _HEADER_MEMBERS, "header")), payload
    except (ValueError, jcs.JsonMalformed) as error:
        raise EarMalformed(f"the result cannot be read: {error}") from error


def _certificate(header: Mapping[str, Any]) -> x509.Certificate:
    chain = header["x5c"]
    if header["typ"] != _TYPE or not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise EarMalformed("the result must carry exactly its signer's certificate, which the CA issued directly")
    if len(chain[0]) > _MAX_CERTIFICATE_BYTES:
        raise EarMalformed("the signer's certificate is too long")
    try:
        return x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True))
    except (ValueError, binascii.Error, x509.InvalidVersion) as error:
        raise EarMalformed("the signer's certificate cannot be read") from error


def _verify_signer(
    certificate: x509.Certificate, ca_spki_der: bytes, now: int
) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Return the SPIFFE ID and key of an attestation service that this CA vouches for now."""
    try:
        ca_key = load_der_public_key(ca_spki_der)
        key = certificate.public_key()
        algorithm = certificate.signature_hash_algorithm
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not isinstance(ca_key, ec.EllipticCurvePublicKey) or algorithm is None:
            raise EarSignerNotTrusted("the mesh CA has an ECDSA key")
        ca_key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except (
        InvalidSignature,
        UnsupportedAlgorithm,
        ValueError,
        TypeError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise EarSignerNotTrusted("the signer's certificate is not from this mesh's CA") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if constraints.ca or len(uris) != 1 or _SIGNER.fullmatch(uris[0]) is None:
        raise EarSignerNotTrusted("the signer is not an attestation service")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EarSignerNotTrusted("results are signed with a P-256 key")
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not start - _CLOCK_SKEW_SECONDS <= now < end:
        raise EarSignerNotTrusted("the signer's certificate is outside its validity")
    return uris[0], key


def _read(payload: dict[str, Any]) -> AttestationResult:
    try:
        if payload.get("eat_profile") != PROFILE:
            raise ValueError("the result is of another profile")
        private = payload.get("teemesh")
        if not isinstance(private, dict) or not isinstance(private.get("appraisal"), dict):
            raise ValueError("the result holds no appraisal")
        return AttestationResult(
            issuer=shape.text(payload.get("iss"), "iss"),
            issued_at=shape.integer(payload.get("iat"), "iat"),
            expires_at=shape.integer(payload.get("exp"), "exp"),
            nonce=_decode(shape.text(payload.get("eat_nonce"), "eat_nonce")),
            status=_statuses(payload.get("submods")),
            appraisal=private["appraisal"],
            claims=payload,
        )
    except ValueError as error:
        raise EarMalformed(str(error)) from error


def _statuses(submods: Any) -> dict[str, str]:
    if not isinstance(submods, dict) or "cpu" not in submods:
        raise ValueError("the result judges no CPU")
    statuses = {}
    for name, submod in submods.items():
        status = submod.get("ear.status") if isinstance(submod, dict) else None
        if status not in (AFFIRMING, WARNING, CONTRAINDICATED):
            raise ValueError("a submodule has no tier")
        statuses[name] = status
    return statuses


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Read base64url in its one form: no padding, no spare bits."""
    if _BASE64URL.fullmatch(text) is None:
        raise ValueError("not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encode(data) != text:
        raise ValueError("not base64url in its one form")
    return data
