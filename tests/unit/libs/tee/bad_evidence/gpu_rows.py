"""Rows about tokens: a GPU's evidence in a document whose quote binds it, wrong in one claim or signature (step 10)."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.tee.nvidia.keys import Issuer
from services.devtee.gpu import ReportShape, sign_raw
from services.devtee.nras import ABSENT, ISSUER, TokenShape
from services.devtee.token_keys import SIGNING_KEY_SECONDS
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, gpu_rules, with_gpu
from tests.unit.libs.tee.bench import NOW
from tests.unit.libs.tee.nvidia.gpu_bench import (
    MAXIMUM_AGE,
    GpuBench,
    Sign,
    base64url,
    edited,
    read_claims,
    segments,
    signer,
)

_OTHER_KEY = ec.generate_private_key(ec.SECP384R1())
_RSA_KEY = rsa.generate_private_key(65537, 2048)
_OTHER_ISSUER = "https://other.devtee.invalid"


def _spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def bundle(bench: GpuBench, nonce: bytes, shape: TokenShape | None = None) -> list[Any]:
    """What the token service answers for both GPUs."""
    return bench.nras.attest(bench.posted(nonce), nonce, NOW, shape)


@dataclass(frozen=True, slots=True)
class _Forgery:
    """A good bundle in which GPU-0's or the overall claims are changed, then signed anew, or otherwise."""

    overall: Mapping[str, Any] | None = None
    device: Mapping[str, Any] | None = None
    sign_overall: Callable[[GpuBench], Sign] | None = None
    sign_device: Callable[[GpuBench], Sign] | None = None

    def make(self, bench: GpuBench, nonce: bytes) -> list[Any]:
        good = bundle(bench, nonce)
        tokens = dict(good[1])
        sign = self.sign_device(bench) if self.sign_device else bench.nras.sign
        tokens["GPU-0"] = sign(edited(read_claims(tokens["GPU-0"]), self.device or {}))
        claims = {**read_claims(good[0][1]), "submods": _digests(tokens)}
        sign = self.sign_overall(bench) if self.sign_overall else bench.nras.sign
        return [["JWT", sign(edited(claims, self.overall or {}))], tokens]


def _digests(tokens: Mapping[str, str]) -> dict[str, Any]:
    return {name: ["DIGEST", ["SHA-256", sha256(token.encode()).hexdigest()]] for name, token in tokens.items()}


def _forged(
    rule: Callable[[Benches], Mapping[str, Any]] = lambda _: {}, **forgery: Any
) -> Callable[[Benches], Present]:
    def make(benches: Benches) -> Present:
        rules = gpu_rules(benches, **rule(benches))
        return with_gpu(benches, lambda nonce: _Forgery(**forgery).make(benches.gpu, nonce), rules=rules)

    return make


def _claim(name: str, value: Any) -> Callable[[Benches], Present]:
    return _forged(device={name: value})


def _of_all(name: str, value: Any) -> Callable[[Benches], Present]:
    return _forged(overall={name: value})


def _chain(chain: str, claim: str, value: Any) -> Callable[[Benches], Present]:
    """One word about one certificate chain of a GPU."""
    name = f"x-nvidia-gpu-{chain}-cert-chain"

    def make(benches: Benches) -> Present:
        def token(nonce: bytes) -> Any:
            good = read_claims(bundle(benches.gpu, nonce)[1]["GPU-0"])[name]
            return _Forgery(device={name: edited(good, {claim: value})}).make(benches.gpu, nonce)

        return with_gpu(benches, token)

    return make


def _switch(claim: str, value: Any) -> Callable[[Benches], Present]:
    """A bundle about an NVSwitch beside a good one about the GPUs."""
    return switched(TokenShape(switches=("77",), devices={claim: value}))


def switched(shape: TokenShape, **rule: Any) -> Callable[[Benches], Present]:
    """Good evidence of GPUs, and switches of this shape."""
    return lambda b: with_gpu(
        b,
        lambda nonce: bundle(b.gpu, nonce),
        switches=lambda nonce: b.gpu.nras.attest([], nonce, NOW, shape),
        rules=gpu_rules(b, **rule),
    )


def _chained(change: Callable[[GpuBench], list[bytes]], **rule: Any) -> Callable[[Benches], Present]:
    """A good bundle whose key comes with other certificates."""
    return lambda b: with_gpu(
        b,
        lambda nonce: bundle(b.gpu, nonce),
        keys={b.gpu.nras.key_id: [certificate.hex() for certificate in change(b.gpu)]},
        rules=gpu_rules(b, **rule),
    )


def _other_keys_certificates(bench: GpuBench) -> list[bytes]:
    return list(bench.nras.authority.certify(NOW).chain)


def _other_authority(benches: Benches) -> Mapping[str, Any]:
    return {"issuers": {ISSUER: Issuer({}, (benches.gpu.vendor.root.der,))}}


def _no_authority(_benches: Benches) -> Mapping[str, Any]:
    return {"issuers": {ISSUER: Issuer({}, (b"not a certificate",))}}


def _stale_key(bench: GpuBench) -> list[bytes]:
    """Certificates of the same key that ended yesterday."""
    nras = bench.nras
    ended = nras.authority.certify(NOW - SIGNING_KEY_SECONDS - 86400, nras.key, nras.key_id)
    return list(ended.chain)


def _shaped(shape: TokenShape, **rule: Any) -> Callable[[Benches], Present]:
    return lambda b: with_gpu(b, lambda nonce: bundle(b.gpu, nonce, shape), rules=gpu_rules(b, **rule))


def _ruled(
    rule: Callable[[Benches], Mapping[str, Any]], shape: TokenShape | None = None
) -> Callable[[Benches], Present]:
    """A good bundle under another rule."""
    return lambda b: with_gpu(b, lambda nonce: bundle(b.gpu, nonce, shape), rules=gpu_rules(b, **rule(b)))


def _rebuilt(change: Callable[[GpuBench, bytes, list[Any]], Any]) -> Callable[[Benches], Present]:
    """A good bundle of which the parts were exchanged."""
    return lambda b: with_gpu(b, lambda nonce: change(b.gpu, nonce, bundle(b.gpu, nonce)))


def _under(key: ec.EllipticCurvePrivateKey | None = None, **header: Any) -> Callable[[GpuBench], Sign]:
    """Sign with this key, the service's where there is none, under the service's header with these changes."""

    def choose(bench: GpuBench) -> Sign:
        whole = edited({"alg": "ES384", "kid": bench.nras.key_id}, header)
        return signer(key or bench.nras.key, whole)

    return choose


def _none(_bench: GpuBench) -> Sign:
    return lambda claims: f"{segments({'alg': 'none'}, claims)}."


def _stripped(bench: GpuBench) -> Sign:
    return lambda claims: f"{segments({'alg': 'ES384', 'kid': bench.nras.key_id}, claims)}."


def _shared_secret(bench: GpuBench) -> Sign:
    def sign(claims: Mapping[str, Any]) -> str:
        signed = segments({"alg": "HS384", "kid": bench.nras.key_id}, claims)
        return f"{signed}.{base64url(hmac.digest(_spki(bench.nras.key), signed.encode(), 'sha384'))}"

    return sign


def _written(write: Callable[[str, bytes], str]) -> Callable[[GpuBench], Sign]:
    """Sign a text whose claims were written in an odd way; it gets the encoded header and the claims' JSON."""

    def choose(bench: GpuBench) -> Sign:
        def sign(claims: Mapping[str, Any]) -> str:
            header = base64url(json.dumps({"alg": "ES384", "kid": bench.nras.key_id}).encode())
            text = write(header, json.dumps(claims).encode())
            return f"{text}.{base64url(sign_raw(bench.nras.key, text.encode()))}"

        return sign

    return choose


def _stray_bits(header: str, claims: bytes) -> str:
    text = base64url(claims + b" " * ((1 - len(claims)) % 3))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return f"{header}.{text[:-1]}{alphabet[alphabet.index(text[-1]) | 1]}"


def _one_character_more(header: str, claims: bytes) -> str:
    text = base64url(claims + b" " * (-len(claims) % 3))
    return f"{header}.{text}A"


def _twice_named(header: str, claims: bytes) -> str:
    return f"{header}.{base64url(claims[:-1] + b', ' + claims[1:])}"


def _signed_in_another_form(bench: GpuBench) -> Sign:
    """The right numbers, the second with a byte that it does not need."""

    def sign(claims: Mapping[str, Any]) -> str:
        signed, _, text = bench.nras.sign(claims).rpartition(".")
        signature = urlsafe_b64decode(text)
        return f"{signed}.{base64url(signature[:48] + bytes(1) + signature[48:])}"

    return sign


def _issuers(pin: Callable[[Benches], bytes]) -> Callable[[Benches], Mapping[str, Any]]:
    return lambda b: {"issuers": {ISSUER: Issuer({b.gpu.nras.key_id: pin(b)}, ())}}


def _other_issuer(benches: Benches) -> Mapping[str, Any]:
    return {"issuers": {**benches.gpu.rule.issuers, _OTHER_ISSUER: Issuer({"k": _spki(_OTHER_KEY)}, ())}}


def _gpu_twice(benches: Benches) -> Present:
    gpu = benches.gpu.gpus[0]
    bench = benches.gpu
    return with_gpu(benches, lambda nonce: bench.nras.attest(bench.posted(nonce, gpus=(gpu, gpu)), nonce, NOW))


def _without_gpu(benches: Benches) -> Present:
    return with_gpu(benches, lambda nonce: benches.gpu.nras.attest([], nonce, NOW, TokenShape(switches=("77",))))


def _gpus_as_switches(benches: Benches) -> Present:
    def about_gpus(nonce: bytes) -> list[Any]:
        return bundle(benches.gpu, nonce)

    return with_gpu(benches, about_gpus, switches=about_gpus)


def _no_rule(benches: Benches) -> Present:
    rules = replace(benches.tdx.rules(), gpu_required=True)
    return with_gpu(benches, lambda nonce: bundle(benches.gpu, nonce), rules=rules)


def _other_measurements(benches: Benches) -> Present:
    bench = benches.gpu
    shape = ReportShape(measurements={9: bytes(48)})
    return with_gpu(benches, lambda nonce: bench.nras.attest(bench.posted(nonce, shape), nonce, NOW))


_GPU_CLAIMS: list[tuple[str, Any, str]] = [
    ("x-nvidia-gpu-claims-version", "2.0", "GPU_CLAIMS_VERSION"),
    ("x-nvidia-device-type", "nvswitch", "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-gpu-arch-check", False, "GPU_ARCHITECTURE_MISMATCH"),
    ("x-nvidia-gpu-attestation-report-parsed", False, "GPU_DEVICE_REPORT_NOT_VERIFIED"),
    ("x-nvidia-gpu-attestation-report-signature-verified", False, "GPU_DEVICE_REPORT_NOT_VERIFIED"),
    ("x-nvidia-gpu-attestation-report-nonce-match", False, "GPU_NONCE_MISMATCH"),
    ("x-nvidia-gpu-attestation-report-cert-chain-fwid-match", False, "GPU_FWID_MISMATCH"),
    ("x-nvidia-gpu-driver-rim-fetched", False, "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-driver-rim-signature-verified", 1, "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-driver-rim-version-match", "true", "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-driver-rim-measurements-available", ABSENT, "GPU_DRIVER_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-fetched", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-signature-verified", None, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-version-match", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-rim-measurements-available", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-vbios-index-no-conflict", False, "GPU_VBIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-gpu-attestation-report-cert-chain", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-gpu-driver-rim-cert-chain", "valid", "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-gpu-vbios-rim-cert-chain", None, "GPU_REVOCATION_UNKNOWN"),
    ("measres", "fail", "GPU_MEASUREMENTS_FAILED"),
    ("measres", ABSENT, "GPU_MEASUREMENTS_FAILED"),
    ("x-nvidia-mismatch-measurement-records", [{"index": 9}], "GPU_MEASUREMENTS_FAILED"),
    ("dbgstat", "enabled", "GPU_DEBUG_ENABLED"),
    ("dbgstat", ABSENT, "GPU_DEBUG_ENABLED"),
    ("secboot", False, "GPU_SECURE_BOOT_OFF"),
    ("secboot", "true", "GPU_SECURE_BOOT_OFF"),
    ("x-nvidia-attestation-warning", "THE CERTIFICATE IS ON HOLD", "GPU_WARNING"),
    ("ueid", ABSENT, "GPU_CLAIMS_MALFORMED"),
    ("hwmodel", "GH100 ", "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-gpu-driver-version", "newest", "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-gpu-vbios-version", None, "GPU_CLAIMS_MALFORMED"),
]
_CERTIFICATES: list[tuple[str, str, Any, str]] = [
    ("attestation-report", "x-nvidia-cert-status", "revoked", "GPU_CERTIFICATE_REVOKED"),
    ("driver-rim", "x-nvidia-cert-ocsp-status", "revoked", "GPU_CERTIFICATE_REVOKED"),
    ("vbios-rim", "x-nvidia-cert-revocation-reason", "CERTIFICATE_HOLD", "GPU_CERTIFICATE_REVOKED"),
    ("attestation-report", "x-nvidia-cert-status", "expired", "GPU_CERTIFICATE_NOT_VALID"),
    ("driver-rim", "x-nvidia-cert-status", ABSENT, "GPU_CERTIFICATE_NOT_VALID"),
    ("attestation-report", "x-nvidia-cert-ocsp-status", "unknown", "GPU_REVOCATION_UNKNOWN"),
    ("driver-rim", "x-nvidia-cert-ocsp-response-valid", False, "GPU_REVOCATION_UNKNOWN"),
    ("vbios-rim", "x-nvidia-cert-ocsp-nonce-matches", False, "GPU_REVOCATION_UNKNOWN"),
]
_SWITCH_CLAIMS: list[tuple[str, Any, str]] = [
    ("x-nvidia-switch-claims-version", "2.0", "GPU_CLAIMS_VERSION"),
    ("x-nvidia-device-type", "gpu", "GPU_CLAIMS_MALFORMED"),
    ("x-nvidia-switch-arch-check", False, "GPU_ARCHITECTURE_MISMATCH"),
    ("x-nvidia-switch-attestation-report-parsed", False, "GPU_DEVICE_REPORT_NOT_VERIFIED"),
    ("x-nvidia-switch-attestation-report-signature-verified", False, "GPU_DEVICE_REPORT_NOT_VERIFIED"),
    ("x-nvidia-switch-attestation-report-nonce-match", ABSENT, "GPU_NONCE_MISMATCH"),
    ("x-nvidia-switch-attestation-report-cert-chain-fwid-match", False, "GPU_FWID_MISMATCH"),
    ("x-nvidia-switch-attestation-report-cert-chain", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-switch-bios-rim-fetched", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-bios-rim-signature-verified", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-bios-rim-version-match", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-bios-rim-measurements-available", False, "GPU_SWITCH_BIOS_RIM_NOT_VERIFIED"),
    ("x-nvidia-switch-bios-rim-cert-chain", ABSENT, "GPU_REVOCATION_UNKNOWN"),
    ("x-nvidia-switch-bios-version", ABSENT, "GPU_CLAIMS_MALFORMED"),
]
_OVERALL: list[tuple[str, Any, str]] = [
    ("x-nvidia-ver", "2.0", "GPU_CLAIMS_VERSION"),
    ("x-nvidia-ver", ABSENT, "GPU_CLAIMS_VERSION"),
    ("x-nvidia-overall-att-result", False, "GPU_OVERALL_FAILED"),
    ("x-nvidia-overall-att-result", "true", "GPU_OVERALL_FAILED"),
    ("sub", "someone", "GPU_TOKEN_SUBJECT_UNKNOWN"),
    ("iss", _OTHER_ISSUER, "GPU_TOKEN_ISSUER_NOT_TRUSTED"),
    ("iss", [ISSUER], "GPU_TOKEN_ISSUER_NOT_TRUSTED"),
    ("exp", NOW, "GPU_TOKEN_EXPIRED"),
    ("exp", ABSENT, "GPU_TOKEN_MALFORMED"),
    ("iat", NOW - MAXIMUM_AGE - 1, "GPU_TOKEN_TOO_OLD"),
    ("iat", NOW + 61, "GPU_TOKEN_FROM_FUTURE"),
    ("iat", str(NOW), "GPU_TOKEN_MALFORMED"),
    ("nbf", NOW + 61, "GPU_TOKEN_FROM_FUTURE"),
    ("nbf", True, "GPU_TOKEN_MALFORMED"),
    ("eat_nonce", "11" * 32, "GPU_NONCE_MISMATCH"),
    ("eat_nonce", ABSENT, "GPU_NONCE_MISMATCH"),
    ("eat_nonce", "é" * 64, "GPU_NONCE_MISMATCH"),
    ("submods", ABSENT, "GPU_SUBMODULE_MISMATCH"),
    ("submods", {"GPU-0": None, "GPU-1": ["DIGEST", ["SHA-1", ""]]}, "GPU_SUBMODULE_MISMATCH"),
]
_DEVICE: list[tuple[str, Any, str]] = [
    ("exp", NOW, "GPU_TOKEN_EXPIRED"),
    ("iat", NOW - MAXIMUM_AGE - 1, "GPU_TOKEN_TOO_OLD"),
    ("nbf", NOW + 61, "GPU_TOKEN_FROM_FUTURE"),
    ("eat_nonce", "22" * 32, "GPU_NONCE_MISMATCH"),
]


def _words(value: Any) -> str:
    return "absent" if value is ABSENT else ascii(value)[:40]


ROWS = [
    Row("policy that requires a GPU and names no rule", 10, "GPU_RULE_MISSING", _no_rule),
    *(Row(f"GPU: {name} {_words(value)}", 10, reason, _claim(name, value)) for name, value, reason in _GPU_CLAIMS),
    *(
        Row(f"GPU's {chain} chain: {name} {_words(value)}", 10, reason, _chain(chain, name, value))
        for chain, name, value, reason in _CERTIFICATES
    ),
    *(
        Row(f"NVSwitch: {name} {_words(value)}", 10, reason, _switch(name, value))
        for name, value, reason in _SWITCH_CLAIMS
    ),
    *(
        Row(f"overall token: {name} {_words(value)}", 10, reason, _of_all(name, value))
        for name, value, reason in _OVERALL
    ),
    *(Row(f"GPU's token: {name} {_words(value)}", 10, reason, _claim(name, value)) for name, value, reason in _DEVICE),
    Row("GPU that runs something else", 10, "GPU_MEASUREMENTS_FAILED", _other_measurements),
    Row("token service's answer an hour later", 10, "GPU_TOKEN_TOO_OLD", lambda b: _older(b)),
    Row("overall token of nobody", 10, "GPU_TOKEN_UNSIGNED", _forged(sign_overall=_none)),
    Row("GPU's token of nobody", 10, "GPU_TOKEN_UNSIGNED", _forged(sign_device=_none)),
    Row("token of no algorithm, and signed", 10, "GPU_TOKEN_UNSIGNED", _forged(sign_overall=_under(alg="none"))),
    Row("overall token without its signature", 10, "GPU_TOKEN_UNSIGNED", _forged(sign_overall=_stripped)),
    Row("token of another algorithm", 10, "GPU_TOKEN_ALGORITHM_NOT_ALLOWED", _forged(sign_overall=_under(alg="ES256"))),
    Row("token of no algorithm", 10, "GPU_TOKEN_ALGORITHM_NOT_ALLOWED", _forged(sign_device=_under(alg=ABSENT))),
    Row("public key as a shared secret", 10, "GPU_TOKEN_ALGORITHM_NOT_ALLOWED", _forged(sign_overall=_shared_secret)),
    Row(
        "token that names an unknown key", 10, "GPU_TOKEN_KEY_NOT_TRUSTED", _forged(sign_overall=_under(kid="unknown"))
    ),
    Row("token that names no key", 10, "GPU_TOKEN_KEY_NOT_TRUSTED", _forged(sign_device=_under(kid=["k"]))),
    Row(
        "key of another trusted issuer",
        10,
        "GPU_TOKEN_KEY_NOT_TRUSTED",
        _forged(_other_issuer, sign_device=_under(_OTHER_KEY, kid="k")),
    ),
    Row(
        "another key under the pinned name", 10, "GPU_TOKEN_SIGNATURE_INVALID", _forged(sign_overall=_under(_OTHER_KEY))
    ),
    Row("another key under a GPU's token", 10, "GPU_TOKEN_SIGNATURE_INVALID", _forged(sign_device=_under(_OTHER_KEY))),
    Row("signature of another form", 10, "GPU_TOKEN_SIGNATURE_INVALID", _forged(sign_overall=_signed_in_another_form)),
    Row(
        "GPU's token of another trusted issuer",
        10,
        "GPU_TOKEN_ISSUERS_DIFFER",
        _forged(_other_issuer, device={"iss": _OTHER_ISSUER}, sign_device=_under(_OTHER_KEY, kid="k")),
    ),
    Row("no issuer pinned", 10, "GPU_TOKEN_ISSUER_NOT_TRUSTED", _ruled(lambda _: {"issuers": {}})),
    Row("no key pinned", 10, "GPU_TOKEN_KEY_NOT_TRUSTED", _ruled(lambda _: {"issuers": {ISSUER: Issuer({}, ())}})),
    Row("pin that is no key", 10, "GPU_PINNED_KEY_UNUSABLE", _ruled(_issuers(lambda _: b"not a key"))),
    Row("pin of another kind", 10, "GPU_PINNED_KEY_UNUSABLE", _ruled(_issuers(lambda _: _spki(_RSA_KEY)))),
    Row(
        "pin on another curve",
        10,
        "GPU_PINNED_KEY_UNUSABLE",
        _ruled(_issuers(lambda _: _spki(ec.generate_private_key(ec.SECP256R1())))),
    ),
    Row(
        "header with a member of its own",
        10,
        "GPU_TOKEN_MALFORMED",
        _forged(sign_overall=_under(jku="https://x.invalid")),
    ),
    Row(
        "signature with a character of no alphabet",
        10,
        "GPU_TOKEN_MALFORMED",
        _rebuilt(lambda bench, nonce, good: [["JWT", good[0][1][:-1] + "é"], good[1]]),
    ),
    Row("claims with stray bits", 10, "GPU_TOKEN_MALFORMED", _forged(sign_overall=_written(_stray_bits))),
    Row("claims with half a byte", 10, "GPU_TOKEN_MALFORMED", _forged(sign_overall=_written(_one_character_more))),
    Row("claims with names twice", 10, "GPU_TOKEN_MALFORMED", _forged(sign_overall=_written(_twice_named))),
    Row(
        "token of four parts",
        10,
        "GPU_TOKEN_MALFORMED",
        _rebuilt(lambda bench, nonce, good: [["JWT", good[0][1] + ".AA"], good[1]]),
    ),
    Row("key under another authority", 10, "GPU_TOKEN_KEY_NOT_TRUSTED", _ruled(_other_authority)),
    Row("certificates of another key", 10, "GPU_TOKEN_SIGNATURE_INVALID", _chained(_other_keys_certificates)),
    Row("certificate of the key alone", 10, "GPU_TOKEN_KEY_NOT_TRUSTED", _chained(lambda b: [b.nras.signing.chain[0]])),
    Row(
        "certificates that do not follow from each other",
        10,
        "GPU_TOKEN_KEY_CHAIN_INVALID",
        _chained(lambda b: [b.nras.signing.chain[0], b.nras.authority.root.der]),
    ),
    Row("certificates that ended", 10, "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT", _chained(_stale_key)),
    Row("authority that is no certificate", 10, "GPU_PINNED_KEY_UNUSABLE", _ruled(_no_authority)),
    Row("GPUs among the NVSwitches", 10, "GPU_TOKEN_DEVICE_MISPLACED", _gpus_as_switches),
    Row("NVSwitch among the GPUs", 10, "GPU_TOKEN_DEVICE_MISPLACED", _shaped(TokenShape(switches=("77",)))),
    Row(
        "NVSwitches that failed as a whole",
        10,
        "GPU_OVERALL_FAILED",
        switched(TokenShape(switches=("77",), overall={"x-nvidia-overall-att-result": False})),
    ),
    Row("bundle that speaks of no GPU", 10, "GPU_TOKEN_WITHOUT_GPU", _without_gpu),
    Row(
        "GPU's token that is not listed",
        10,
        "GPU_SUBMODULE_MISMATCH",
        _rebuilt(lambda bench, nonce, good: [good[0], {**good[1], "GPU-2": good[1]["GPU-0"]}]),
    ),
    Row(
        "listed GPU without a token",
        10,
        "GPU_SUBMODULE_MISMATCH",
        _rebuilt(lambda bench, nonce, good: [good[0], {"GPU-0": good[1]["GPU-0"]}]),
    ),
    Row(
        "GPUs' tokens exchanged",
        10,
        "GPU_SUBMODULE_MISMATCH",
        _rebuilt(lambda bench, nonce, good: [good[0], {"GPU-0": good[1]["GPU-1"], "GPU-1": good[1]["GPU-0"]}]),
    ),
    Row(
        "GPUs' tokens of another bundle",
        10,
        "GPU_SUBMODULE_MISMATCH",
        _rebuilt(lambda bench, nonce, good: [good[0], bundle(bench, nonce)[1]]),
    ),
    Row("one GPU in two places", 10, "GPU_DEVICE_LISTED_TWICE", _gpu_twice),
    Row(
        "GPU revoked",
        10,
        "GPU_DEVICE_REVOKED",
        _ruled(
            lambda b: {
                "allowed_ueids": frozenset(gpu.ueid for gpu in b.gpu.gpus),
                "revoked_ueids": frozenset({b.gpu.gpus[1].ueid}),
            }
        ),
    ),
    Row(
        "NVSwitch revoked",
        10,
        "GPU_DEVICE_REVOKED",
        switched(TokenShape(switches=("77",)), revoked_ueids=frozenset({"77"})),
    ),
    Row(
        "GPU not listed",
        10,
        "GPU_DEVICE_NOT_ALLOWED",
        _ruled(lambda b: {"allowed_ueids": frozenset({b.gpu.gpus[0].ueid})}),
    ),
    Row(
        "GPU model not listed", 10, "GPU_MODEL_NOT_ALLOWED", _ruled(lambda _: {"allowed_models": frozenset({"GH100"})})
    ),
    Row(
        "no reports where policy asks for them",
        10,
        "GPU_REPORTS_REQUIRED",
        _ruled(lambda _: {"reports_required": True}),
    ),
]


def _older(benches: Benches) -> Present:
    """Rules that accept no token at all once it is a second old, and a token from a minute ago."""
    shape = TokenShape(overall={"iat": NOW - 60}, devices={"iat": NOW - 60})
    return _shaped(shape, maximum_token_age_seconds=59)(benches)
