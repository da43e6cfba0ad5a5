"""Bundles of tokens: each way to be refused, the rest of the bundle good and signed by the trusted key."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import MeshError
from libs.tee.nvidia import token
from libs.tee.nvidia.jwks import JwksMalformed, PublishedKey, read_jwks
from libs.tee.nvidia.keys import Issuer, Keyring
from libs.tee.nvidia.token import GPU, SWITCH, DetachedEat, TokenMalformed, key_ids, verify_bundle
from services.devtee.nras import ABSENT, ISSUER, TokenShape
from tests.unit.libs.tee.nvidia.gpu_bench import (
    MAXIMUM_AGE,
    NONCE,
    NOW,
    GpuBench,
    base64url,
    read_claims,
    segments,
    signer,
)

OTHER_KEY = ec.generate_private_key(ec.SECP384R1())
OTHER_ISSUER = "https://other.devtee.invalid"


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _refusal(
    bench: GpuBench,
    bundle: Any,
    *,
    now: int = NOW,
    nonce: bytes = NONCE,
    issuers: Mapping[str, Issuer] | None = None,
    kind: str = GPU,
) -> str:
    keyring = bench.keyring(issuers, now)
    with pytest.raises(MeshError) as refusal:
        verify_bundle(DetachedEat.parse(bundle), nonce, keyring, MAXIMUM_AGE, now, kind=kind)
    return refusal.value.reason


def test_good_bundle_is_verified(gpu_bench: GpuBench) -> None:
    eat = DetachedEat.parse(gpu_bench.bundle())
    verified = verify_bundle(eat, NONCE, gpu_bench.keyring(), MAXIMUM_AGE, NOW)
    assert verified.issuer == ISSUER
    assert sorted(verified.devices) == ["GPU-0", "GPU-1"]
    assert verified.valid_until == NOW + MAXIMUM_AGE
    assert DetachedEat.parse(eat.to_json()) == eat


def test_good_bundle_about_switches_is_verified(gpu_bench: GpuBench) -> None:
    eat = DetachedEat.parse(gpu_bench.switch_bundle(TokenShape(switches=("77", "78"))))
    verified = verify_bundle(eat, NONCE, gpu_bench.keyring(), MAXIMUM_AGE, NOW, kind=SWITCH)
    assert sorted(verified.devices) == ["SWITCH-0", "SWITCH-1"]


@pytest.mark.parametrize("kind", [GPU, SWITCH])
def test_bundle_about_both_kinds_of_device_is_refused(gpu_bench: GpuBench, kind: str) -> None:
    both = gpu_bench.bundle(TokenShape(switches=("77",)))
    assert _refusal(gpu_bench, both, kind=kind) == "GPU_TOKEN_DEVICE_MISPLACED"


def test_bundle_about_gpus_is_refused_for_one_about_switches(gpu_bench: GpuBench) -> None:
    assert _refusal(gpu_bench, gpu_bench.bundle(), kind=SWITCH) == "GPU_TOKEN_DEVICE_MISPLACED"


def test_bundle_names_the_keys_that_signed_it(gpu_bench: GpuBench) -> None:
    sign = signer(OTHER_KEY, {"alg": "ES384", "kid": "other"})
    bundle = DetachedEat.parse(gpu_bench.forged(sign_device=sign))
    assert key_ids(bundle) == {gpu_bench.nras.key_id, "other"}


@pytest.mark.parametrize("header", [{}, {"kid": 7}, {"kid": None}])
def test_bundle_that_does_not_name_its_keys_is_malformed(gpu_bench: GpuBench, header: dict[str, Any]) -> None:
    sign = signer(OTHER_KEY, {"alg": "ES384", **header})
    with pytest.raises(TokenMalformed):
        key_ids(DetachedEat.parse(gpu_bench.forged(sign_device=sign)))


def test_verdict_holds_no_longer_than_the_token(gpu_bench: GpuBench) -> None:
    eat = DetachedEat.parse(gpu_bench.bundle(TokenShape(lifetime_seconds=100)))
    for now in (NOW, NOW + 99):
        assert verify_bundle(eat, NONCE, gpu_bench.keyring(now=now), MAXIMUM_AGE, now).valid_until == NOW + 99


def _none(claims: Mapping[str, Any]) -> str:
    return f"{segments({'alg': 'none'}, claims)}."


def _stripped(claims: Mapping[str, Any]) -> str:
    return f"{segments({'alg': 'ES384', 'kid': 'any'}, claims)}."


@pytest.mark.parametrize("place", ["sign_overall", "sign_device"])
@pytest.mark.parametrize("sign", [_none, _stripped])
def test_unsigned_token_is_refused(gpu_bench: GpuBench, place: str, sign: Callable[[Mapping[str, Any]], str]) -> None:
    signing: dict[str, Any] = {place: sign}
    assert _refusal(gpu_bench, gpu_bench.forged(**signing)) == "GPU_TOKEN_UNSIGNED"


@pytest.mark.parametrize("place", ["sign_overall", "sign_device"])
@pytest.mark.parametrize("algorithm", ["ES256", "ES512", "RS256", "PS384", "HS256", "HS384", "es384", "", None, 384])
def test_other_algorithm_is_refused(gpu_bench: GpuBench, place: str, algorithm: Any) -> None:
    sign = signer(gpu_bench.nras.key, {"alg": algorithm, "kid": gpu_bench.nras.key_id})
    signing: dict[str, Any] = {place: sign}
    assert _refusal(gpu_bench, gpu_bench.forged(**signing)) == "GPU_TOKEN_ALGORITHM_NOT_ALLOWED"


def test_public_key_does_not_pass_as_a_shared_secret(gpu_bench: GpuBench) -> None:
    def sign(claims: Mapping[str, Any]) -> str:
        signed = segments({"alg": "HS384", "kid": gpu_bench.nras.key_id}, claims)
        return f"{signed}.{base64url(hmac.digest(_spki(gpu_bench.nras.key), signed.encode(), 'sha384'))}"

    assert _refusal(gpu_bench, gpu_bench.forged(sign_overall=sign)) == "GPU_TOKEN_ALGORITHM_NOT_ALLOWED"


@pytest.mark.parametrize("place", ["sign_overall", "sign_device"])
@pytest.mark.parametrize("header", [{"kid": "unknown"}, {}, {"kid": 7}, {"kid": None}])
def test_key_that_is_neither_pinned_nor_certified_is_refused(
    gpu_bench: GpuBench, place: str, header: dict[str, Any]
) -> None:
    signing: dict[str, Any] = {place: signer(gpu_bench.nras.key, {"alg": "ES384", **header})}
    assert _refusal(gpu_bench, gpu_bench.forged(**signing)) == "GPU_TOKEN_KEY_NOT_TRUSTED"


@pytest.mark.parametrize("place", ["sign_overall", "sign_device"])
def test_other_key_under_the_trusted_name_is_refused(gpu_bench: GpuBench, place: str) -> None:
    signing: dict[str, Any] = {place: signer(OTHER_KEY, {"alg": "ES384", "kid": gpu_bench.nras.key_id})}
    assert _refusal(gpu_bench, gpu_bench.forged(**signing)) == "GPU_TOKEN_SIGNATURE_INVALID"


def test_claims_changed_after_signing_are_refused(gpu_bench: GpuBench) -> None:
    (word, overall), tokens = gpu_bench.bundle(TokenShape(overall={"x-nvidia-overall-att-result": False}))
    header, _, signature = overall.split(".")
    claims = base64url(json.dumps({**read_claims(overall), "x-nvidia-overall-att-result": True}).encode())
    forged = [[word, f"{header}.{claims}.{signature}"], tokens]
    assert _refusal(gpu_bench, forged) == "GPU_TOKEN_SIGNATURE_INVALID"


@pytest.mark.parametrize("signature", ["AA", "A" * 127 + "g", "A" * 128, "A" * 256])
def test_signature_of_another_form_is_refused(gpu_bench: GpuBench, signature: str) -> None:
    (word, overall), tokens = gpu_bench.bundle()
    forged = [[word, f"{overall.rpartition('.')[0]}.{signature}"], tokens]
    assert _refusal(gpu_bench, forged) == "GPU_TOKEN_SIGNATURE_INVALID"


@pytest.mark.parametrize("place", ["overall", "device"])
@pytest.mark.parametrize("issuer", ["https://nras.attestation.nvidia.com", ISSUER + "/", ABSENT, None, [ISSUER]])
def test_issuer_that_policy_does_not_name_is_refused(gpu_bench: GpuBench, place: str, issuer: Any) -> None:
    changes: dict[str, Any] = {place: {"iss": issuer}}
    assert _refusal(gpu_bench, gpu_bench.forged(**changes)) == "GPU_TOKEN_ISSUER_NOT_TRUSTED"


def test_device_token_of_another_trusted_issuer_is_refused(gpu_bench: GpuBench) -> None:
    issuers = {**gpu_bench.rule.issuers, OTHER_ISSUER: Issuer({"k": _spki(OTHER_KEY)}, ())}
    sign = signer(OTHER_KEY, {"alg": "ES384", "kid": "k"})
    bundle = gpu_bench.forged(device={"iss": OTHER_ISSUER}, sign_device=sign)
    assert _refusal(gpu_bench, bundle, issuers=issuers) == "GPU_TOKEN_ISSUERS_DIFFER"


def test_key_of_one_issuer_does_not_sign_for_another(gpu_bench: GpuBench) -> None:
    issuers = {**gpu_bench.rule.issuers, OTHER_ISSUER: Issuer({"k": _spki(OTHER_KEY)}, ())}
    sign = signer(OTHER_KEY, {"alg": "ES384", "kid": "k"})
    assert _refusal(gpu_bench, gpu_bench.forged(sign_device=sign), issuers=issuers) == "GPU_TOKEN_KEY_NOT_TRUSTED"


@pytest.mark.parametrize(
    "pin",
    [b"", b"not a key", _spki(OTHER_KEY)[:-1], _spki(ec.generate_private_key(ec.SECP256R1()))],
    ids=["nothing", "text", "a cut key", "a P-256 key"],
)
def test_pin_that_is_no_p384_key_is_refused(gpu_bench: GpuBench, pin: bytes) -> None:
    issuers = {ISSUER: Issuer({gpu_bench.nras.key_id: pin}, ())}
    assert _refusal(gpu_bench, gpu_bench.bundle(), issuers=issuers) == "GPU_PINNED_KEY_UNUSABLE"


# Changed claims of one token, and the reason.
_TIMES = [
    ({"exp": NOW}, "GPU_TOKEN_EXPIRED"),
    ({"exp": NOW - 1}, "GPU_TOKEN_EXPIRED"),
    ({"iat": NOW - MAXIMUM_AGE - 1}, "GPU_TOKEN_TOO_OLD"),
    ({"iat": NOW + 61}, "GPU_TOKEN_FROM_FUTURE"),
    ({"nbf": NOW + 61}, "GPU_TOKEN_FROM_FUTURE"),
    ({"iat": ABSENT}, "GPU_TOKEN_MALFORMED"),
    ({"exp": ABSENT}, "GPU_TOKEN_MALFORMED"),
    ({"exp": True}, "GPU_TOKEN_MALFORMED"),
    ({"iat": str(NOW)}, "GPU_TOKEN_MALFORMED"),
    ({"iat": -1}, "GPU_TOKEN_MALFORMED"),
    ({"nbf": None}, "GPU_TOKEN_MALFORMED"),
]


@pytest.mark.parametrize("place", ["overall", "device"])
@pytest.mark.parametrize(("changes", "reason"), _TIMES)
def test_token_outside_its_time_is_refused(
    gpu_bench: GpuBench, place: str, changes: dict[str, Any], reason: str
) -> None:
    changed: dict[str, Any] = {place: changes}
    assert _refusal(gpu_bench, gpu_bench.forged(**changed)) == reason


@pytest.mark.parametrize("changes", [{"iat": NOW + 60}, {"nbf": ABSENT}, {"iat": NOW - MAXIMUM_AGE}, {"exp": NOW + 1}])
def test_token_at_the_edge_of_its_time_is_accepted(gpu_bench: GpuBench, changes: dict[str, Any]) -> None:
    eat = DetachedEat.parse(gpu_bench.forged(overall=changes))
    assert verify_bundle(eat, NONCE, gpu_bench.keyring(), MAXIMUM_AGE, NOW).valid_until >= NOW


@pytest.mark.parametrize("place", ["overall", "device"])
@pytest.mark.parametrize(
    "nonce", ["11" * 32, NONCE.hex()[:-2], NONCE.hex().upper(), "0x" + NONCE.hex(), "é" * 64, "", None, ABSENT, 7]
)
def test_other_nonce_is_refused(gpu_bench: GpuBench, place: str, nonce: Any) -> None:
    changed: dict[str, Any] = {place: {"eat_nonce": nonce}}
    assert _refusal(gpu_bench, gpu_bench.forged(**changed)) == "GPU_NONCE_MISMATCH"


def test_other_expected_nonce_is_refused(gpu_bench: GpuBench) -> None:
    assert _refusal(gpu_bench, gpu_bench.bundle(), nonce=bytes(32)) == "GPU_NONCE_MISMATCH"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_expected_nonce_of_another_size_is_a_mistake_of_the_caller(gpu_bench: GpuBench, length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        verify_bundle(DetachedEat.parse(gpu_bench.bundle()), bytes(length), gpu_bench.keyring(), MAXIMUM_AGE, NOW)


@pytest.mark.parametrize("subject", ["NVIDIA-GPU-ATTESTATION", "", None, ABSENT])
def test_other_subject_is_refused(gpu_bench: GpuBench, subject: Any) -> None:
    assert _refusal(gpu_bench, gpu_bench.forged(overall={"sub": subject})) == "GPU_TOKEN_SUBJECT_UNKNOWN"


def test_device_token_that_is_not_listed_is_refused(gpu_bench: GpuBench) -> None:
    overall, tokens = gpu_bench.bundle()
    assert _refusal(gpu_bench, [overall, {**tokens, "GPU-2": tokens["GPU-0"]}]) == "GPU_SUBMODULE_MISMATCH"


def test_listed_device_without_a_token_is_refused(gpu_bench: GpuBench) -> None:
    overall, tokens = gpu_bench.bundle()
    assert _refusal(gpu_bench, [overall, {"GPU-0": tokens["GPU-0"]}]) == "GPU_SUBMODULE_MISMATCH"


def test_exchanged_device_tokens_are_refused(gpu_bench: GpuBench) -> None:
    overall, tokens = gpu_bench.bundle()
    swapped = {"GPU-0": tokens["GPU-1"], "GPU-1": tokens["GPU-0"]}
    assert _refusal(gpu_bench, [overall, swapped]) == "GPU_SUBMODULE_MISMATCH"


def test_device_token_of_another_bundle_is_refused(gpu_bench: GpuBench) -> None:
    overall, _ = gpu_bench.bundle()
    assert _refusal(gpu_bench, [overall, gpu_bench.bundle()[1]]) == "GPU_SUBMODULE_MISMATCH"


@pytest.mark.parametrize(
    "submods", [ABSENT, None, [], {}, {"GPU-0": "DIGEST", "GPU-1": None}, {"GPU-0": ["DIGEST", ["SHA-1", ""]]}]
)
def test_list_of_another_form_is_refused(gpu_bench: GpuBench, submods: Any) -> None:
    assert _refusal(gpu_bench, gpu_bench.forged(overall={"submods": submods})) == "GPU_SUBMODULE_MISMATCH"


@pytest.mark.parametrize("form", [("digest", "SHA-256"), ("DIGEST", "SHA-384"), ("DIGEST", "sha256")])
def test_digest_of_another_kind_is_refused(gpu_bench: GpuBench, form: tuple[str, str]) -> None:
    bundle = gpu_bench.bundle()
    submods = {name: [form[0], [form[1], value[1][1]]] for name, value in read_claims(bundle[0][1])["submods"].items()}
    resigned = gpu_bench.nras.sign({**read_claims(bundle[0][1]), "submods": submods})
    assert _refusal(gpu_bench, [["JWT", resigned], bundle[1]]) == "GPU_SUBMODULE_MISMATCH"


def test_bundle_without_a_gpu_is_refused(gpu_bench: GpuBench) -> None:
    bundle = gpu_bench.nras.attest([], NONCE, NOW, TokenShape(switches=("77",)))
    assert _refusal(gpu_bench, bundle) == "GPU_TOKEN_WITHOUT_GPU"


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        [["JWT", "a.b.c"]],
        [["JWT", "a.b.c"], {}],
        [["JWT", "a.b.c"], []],
        [["JWT", 7], {"GPU-0": "a.b.c"}],
        [["CWT", "a.b.c"], {"GPU-0": "a.b.c"}],
        [["JWT", "a.b.c", ""], {"GPU-0": "a.b.c"}],
        [["JWT", "a.b.c"], {"GPU-0": "a.b.c"}, {}],
        [["JWT", "a.b.c"], {"GPU-0": None}],
        [["JWT", "a.b.c"], {"GPU-00": "a.b.c"}],
        [["JWT", "a.b.c"], {"GPU-100": "a.b.c"}],
        [["JWT", "a.b.c"], {"gpu-0": "a.b.c"}],
        [["JWT", "a.b.c"], {"GPU-0\n": "a.b.c"}],
        [["JWT", "a.b.c"], {"CPU-0": "a.b.c"}],
        [["JWT", "a.b.c"], {f"GPU-{number}": "a.b.c" for number in range(17)}],
        [["JWT", "a" * (token.MAX_TOKEN_BYTES + 1)], {"GPU-0": "a.b.c"}],
        [["JWT", "a.b.c"], {"GPU-0": "a" * (token.MAX_TOKEN_BYTES + 1)}],
    ],
)
def test_bundle_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(TokenMalformed):
        DetachedEat.parse(value)


_HEADER = {"alg": "ES384", "kid": "k"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        "a.b.c.d",
        "..",
        segments(_HEADER, {}),
        segments(_HEADER, []) + ".AA",
        segments([], {}) + ".AA",
        segments({**_HEADER, "crit": ["b64"], "b64": False}, {}) + ".AA",
        segments({**_HEADER, "jku": "https://elsewhere.invalid"}, {}) + ".AA",
        segments({**_HEADER, "x5c": []}, {}) + ".AA",
        segments(b'{"alg":"none","alg":"ES384","kid":"k"}', {}) + ".AA",
        segments(_HEADER, b'{"iss":"a","iss":"b"}') + ".AA",
        segments(_HEADER, b'{"iat":1.5}') + ".AA",
        segments(_HEADER, b"\xff") + ".AA",
        segments(_HEADER, b"[" * 5000) + ".AA",
        segments(_HEADER, {}) + ".AB",
        segments(_HEADER, {}) + ".A",
        segments(_HEADER, {}) + ".AA==",
        segments(_HEADER, {}) + ".+/",
        segments(_HEADER, {}) + ".AA\n",
        segments(_HEADER, {}) + ".é",
    ],
)
def test_token_that_cannot_be_read_in_one_way_is_refused(gpu_bench: GpuBench, text: str) -> None:
    _, tokens = gpu_bench.bundle()
    assert _refusal(gpu_bench, [["JWT", text], tokens]) == "GPU_TOKEN_MALFORMED"


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=100))
def test_any_token_text_is_refused_with_a_reason(header: bytes, claims: bytes, signature: bytes) -> None:
    text = f"{segments(header, claims)}.{base64url(signature)}"
    with pytest.raises(MeshError):
        verify_bundle(
            DetachedEat.parse([["JWT", text], {"GPU-0": text}]), NONCE, Keyring({}, {}, NOW), MAXIMUM_AGE, NOW
        )


def _jwk(bench: GpuBench, **changes: Any) -> bytes:
    (key,) = bench.nras.jwks()["keys"]
    return json.dumps(
        {"keys": [{name: each for name, each in {**key, **changes}.items() if each is not ABSENT}]}
    ).encode()


def test_published_keys_are_read(gpu_bench: GpuBench) -> None:
    nras = gpu_bench.nras
    assert read_jwks(_jwk(gpu_bench)) == {nras.key_id: PublishedKey(_spki(nras.key), nras.signing.chain)}
    assert read_jwks(_jwk(gpu_bench, alg="ES384", use="sig")) == read_jwks(_jwk(gpu_bench))
    assert read_jwks(_jwk(gpu_bench, x5c=ABSENT)) == {nras.key_id: PublishedKey(_spki(nras.key), ())}


def test_published_chain_may_hold_its_root(gpu_bench: GpuBench) -> None:
    nras = gpu_bench.nras
    whole = (*nras.signing.chain, nras.authority.root.der)
    published = read_jwks(_jwk(gpu_bench, x5c=[base64.b64encode(der).decode() for der in whole]))
    assert published[nras.key_id].certificates == whole


def test_key_that_is_not_its_certificates_is_refused(gpu_bench: GpuBench) -> None:
    root = gpu_bench.vendor.root.der
    with pytest.raises(JwksMalformed, match="not the one in its own certificate"):
        read_jwks(_jwk(gpu_bench, x5c=[base64.b64encode(root).decode()]))
    unknown_version = base64.b64encode(root.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", 1)).decode()
    with pytest.raises(JwksMalformed, match="cannot be read"):
        read_jwks(_jwk(gpu_bench, x5c=[unknown_version]))


@pytest.mark.parametrize(
    "changes",
    [
        {"kty": "RSA"},
        {"crv": "P-256"},
        {"alg": "ES256"},
        {"use": "enc"},
        {"d": "AA"},
        {"kid": ABSENT},
        {"kid": ""},
        {"kid": "k" * 129},
        {"kid": 7},
        {"x": ABSENT},
        {"x": "AA"},
        {"x": "A" * 64},
        {"x": "!" * 64},
        {"y": 7},
        {"x5c": "AA"},
        {"x5c": []},
        {"x5c": ["AA"]},
        {"x5c": ["not base64!"]},
        {"x5c": ["\u00e9"]},
        {"x5c": [7]},
        {"x5c": ["AA=="] * 5},
        {"x5c": [base64.b64encode(bytes(4097)).decode()]},
    ],
)
def test_key_of_another_form_is_refused(gpu_bench: GpuBench, changes: dict[str, Any]) -> None:
    with pytest.raises(JwksMalformed):
        read_jwks(_jwk(gpu_bench, **changes))


def test_set_of_another_form_is_refused(gpu_bench: GpuBench) -> None:
    key = gpu_bench.nras.jwks()["keys"][0]
    many = [{**key, "kid": str(number)} for number in range(129)]
    sets: list[Any] = [[], {}, {"keys": {}}, {"keys": []}, {"keys": [None]}, {"keys": [key, key]}, {"keys": many}]
    for value in sets:
        with pytest.raises(JwksMalformed):
            read_jwks(json.dumps(value).encode())
    for document in (b"", b"\xff", b'{"keys":[],"keys":[]}', b" " * (512 * 1024 + 1)):
        with pytest.raises(JwksMalformed):
            read_jwks(document)
