"""Signed results follow from the verdict, and only this mesh's attestation service is believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.api_jws import PyJWS

from libs.errors import MeshError
from libs.identity import certificate as certificates
from libs.tee import ear
from libs.tee.appraisal import Appraisal, appraise
from libs.tee.ear import Signer, Subject, sign_ear, verify_ear
from libs.tee.nvidia.claims import GpuDevice
from libs.tee.nvidia.evidence import GpuVerdict
from libs.tee.rules import FOREVER
from libs.tee.workload import Claim, Source, Status
from tests.unit.libs.tee.bench import NOW, Bench, Issuer

NONCE = bytes(range(32))
ISSUER = "spiffe://mesh.test/attestation/1"


@pytest.fixture(scope="module")
def appraisal(bench: Bench) -> Appraisal:
    return appraise(bench.evidence(), bench.rules(), bench.context())


def subject(appraisal: Appraisal, **changes: Any) -> Subject:
    return replace(Subject(appraisal, NONCE, bytes(32), development=False, record_digest=b"r" * 32), **changes)


def signer(issuer: Issuer, role: str = "attestation", *, now: int = NOW, name: str | None = None) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    digest = None if role in certificates.PEOPLE else bytes(32)
    named = certificates.Subject("mesh.test", role, "1", digest)
    der = certificates.issue(named, key.public_key(), issuer.key, issuer.certificate_der, now=now)
    return Signer(name or f"spiffe://mesh.test/{role}/1", key, der, now + 3540)


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, payload, _ = token.split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(part + "==")) for part in (header, payload))


def again(token: str, by: Signer, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> str:
    """The same result with other members, truly signed."""
    header, payload = parts(token)
    change(header, payload)
    algorithm = header.pop("alg")
    key = by.key if algorithm == "ES256" else "" if algorithm == "none" else "k" * 64
    return PyJWS(algorithms=["ES256", "HS256", "none"]).encode(
        json.dumps(payload).encode(), key, algorithm, header, sort_headers=True
    )


def test_a_result_is_read_back_under_the_ca(bench: Bench, appraisal: Appraisal) -> None:
    result = verify_ear(sign_ear(subject(appraisal), signer(bench.issuer)), bench.issuer.spki, NOW, nonce=NONCE)
    assert (result.issuer, result.issued_at, result.nonce) == (ISSUER, NOW, NONCE)
    assert result.expires_at == NOW + 3540  # The certificate's end comes before the verdict's.
    assert result.status == {"cpu": ear.AFFIRMING}
    assert result.appraisal == appraisal.to_json()


def test_a_result_ends_with_the_verdict(bench: Bench, appraisal: Appraisal) -> None:
    short = replace(appraisal, valid_until=NOW + 100)
    token = sign_ear(subject(short), signer(bench.issuer))
    assert verify_ear(token, bench.issuer.spki, NOW + 99).expires_at == NOW + 100
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW + 100)) == "EAR_NOT_CURRENT"


def test_a_result_says_what_the_profile_asks_for(bench: Bench, appraisal: Appraisal) -> None:
    header, payload = parts(sign_ear(subject(appraisal), signer(bench.issuer)))
    assert (header["alg"], header["typ"], len(header["x5c"])) == ("ES256", "eat+jwt", 1)
    assert payload["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert set(payload["ear.verifier-id"]) == {"developer", "build"}
    cpu = payload["submods"]["cpu"]
    assert cpu["ear.appraisal-policy-id"] == f"policy/7/sha256/{bytes(32).hex()}"
    assert cpu["ear.trustworthiness-vector"] == {
        "instance-identity": 2,
        "configuration": 2,
        "executables": 3,
        "hardware": 2,
        "runtime-opaque": 2,
    }
    own = payload["teemesh"]
    assert own["evidence_digest"] == appraisal.evidence_digest.hex()
    assert own["claims"] == appraisal.claims.to_json()
    assert own["record_digest"] == (b"r" * 32).hex()


def outdated(appraisal: Appraisal, status: str) -> Appraisal:
    claim = Claim(Status.REFUTED, Source.HARDWARE_PROVEN, status)
    return replace(appraisal, tcb_status=status, claims=replace(appraisal.claims, tcb_up_to_date=claim))


@pytest.mark.parametrize(
    ("status", "hardware", "configuration"),
    [
        ("OutOfDate", 32, 2),
        ("SWHardeningNeeded", 32, 2),
        ("ConfigurationNeeded", 32, 32),
        ("ConfigurationAndSWHardeningNeeded", 32, 32),
    ],
)
def test_a_patch_level_that_is_not_up_to_date_is_a_warning(
    bench: Bench, appraisal: Appraisal, status: str, hardware: int, configuration: int
) -> None:
    token = sign_ear(subject(outdated(appraisal, status)), signer(bench.issuer))
    vector = parts(token)[1]["submods"]["cpu"]["ear.trustworthiness-vector"]
    assert (vector["hardware"], vector["configuration"]) == (hardware, configuration)
    assert verify_ear(token, bench.issuer.spki, NOW).status == {"cpu": ear.WARNING}


def test_an_advisory_is_a_warning(bench: Bench, appraisal: Appraisal) -> None:
    token = sign_ear(subject(replace(appraisal, advisories=("INTEL-SA-1",))), signer(bench.issuer))
    assert verify_ear(token, bench.issuer.spki, NOW).status == {"cpu": ear.WARNING}


def test_a_development_root_never_affirms(bench: Bench, appraisal: Appraisal) -> None:
    token = sign_ear(subject(appraisal, development=True), signer(bench.issuer))
    result = verify_ear(token, bench.issuer.spki, NOW)
    assert result.status == {"cpu": ear.CONTRAINDICATED}
    assert result.claims["teemesh"]["development"] is True
    vector = result.claims["submods"]["cpu"]["ear.trustworthiness-vector"]
    assert (vector["hardware"], vector["runtime-opaque"]) == (96, 96)


@pytest.mark.parametrize(("development", "status"), [(False, ear.AFFIRMING), (True, ear.CONTRAINDICATED)])
def test_proven_gpus_are_a_submodule(bench: Bench, appraisal: Appraisal, development: bool, status: str) -> None:
    device = GpuDevice("GPU-0", "1", "GH100", "1.2", "1.2")
    gpu = GpuVerdict("https://issuer.test", (device,), (), reports_verified=True, valid_until=FOREVER)
    token = sign_ear(subject(replace(appraisal, gpu=gpu), development=development), signer(bench.issuer))
    assert verify_ear(token, bench.issuer.spki, NOW).status["gpu"] == status


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(MeshError) as error:
        action()
    return error.value.reason


def test_a_result_by_another_mesh_is_refused(bench: Bench, appraisal: Appraisal) -> None:
    token = sign_ear(subject(appraisal), signer(Issuer.create()))
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_SIGNER_NOT_TRUSTED"


@pytest.mark.parametrize("role", ["router", "node", "kms", "operator"])
def test_a_result_by_another_member_is_refused(bench: Bench, appraisal: Appraisal, role: str) -> None:
    token = sign_ear(subject(appraisal), signer(bench.issuer, role))
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_SIGNER_NOT_TRUSTED"


def test_a_result_in_anothers_name_is_refused(bench: Bench, appraisal: Appraisal) -> None:
    token = sign_ear(subject(appraisal), signer(bench.issuer, name="spiffe://mesh.test/attestation/2"))
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_SIGNER_NOT_TRUSTED"


@pytest.mark.parametrize("issued", [NOW - 7200, NOW + 7200])
def test_a_signer_whose_certificate_is_not_valid_now_is_refused(
    bench: Bench, appraisal: Appraisal, issued: int
) -> None:
    by = replace(signer(bench.issuer, now=issued), certificate_until=NOW + 100_000)
    token = sign_ear(subject(appraisal), by)
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_SIGNER_NOT_TRUSTED"


def test_a_result_from_the_future_is_refused(bench: Bench, appraisal: Appraisal) -> None:
    token = sign_ear(subject(replace(appraisal, appraised_at=NOW + 61)), signer(bench.issuer))
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_NOT_CURRENT"


def test_a_result_for_another_challenge_is_refused(bench: Bench, appraisal: Appraisal) -> None:
    token = sign_ear(subject(appraisal), signer(bench.issuer))
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW, nonce=bytes(32))) == "EAR_NONCE_MISMATCH"


def test_a_changed_result_is_refused(bench: Bench, appraisal: Appraisal) -> None:
    by = signer(bench.issuer)
    token, other = sign_ear(subject(appraisal), by), sign_ear(subject(appraisal, nonce=b"x" * 32), by)
    mixed = ".".join([*token.split(".")[:1], other.split(".")[1], token.split(".")[2]])
    assert refusal(lambda: verify_ear(mixed, bench.issuer.spki, NOW)) == "EAR_SIGNATURE_INVALID"


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_another_algorithm_is_refused(bench: Bench, appraisal: Appraisal, algorithm: str) -> None:
    by = signer(bench.issuer)
    token = again(sign_ear(subject(appraisal), by), by, lambda header, _: header.update(alg=algorithm))
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_ALGORITHM_NOT_ALLOWED"


@pytest.mark.parametrize(
    "change",
    [
        lambda header, _: header.update(crit=["b64"], b64=True),
        lambda header, _: header.update(x5c=[*header["x5c"], *header["x5c"]]),
        lambda header, _: header.update(x5c=["AAAA"]),
        lambda header, _: header.update(x5c=["A" * 20_000]),
        lambda header, _: header.update(x5c="AAAA"),
        lambda header, _: header.update(typ="JWT"),
        lambda _, payload: payload.update(eat_profile="tag:other"),
        lambda _, payload: payload.update(exp="soon"),
        lambda _, payload: payload.update(eat_nonce="="),
        lambda _, payload: payload.pop("teemesh"),
        lambda _, payload: payload["submods"].pop("cpu"),
        lambda _, payload: payload["submods"]["cpu"].update({"ear.status": "excellent"}),
        lambda _, payload: payload["submods"].update(gpu=None),
        lambda _, payload: payload.update(iat=1.5),
    ],
)
def test_a_result_of_another_form_is_refused(
    bench: Bench, appraisal: Appraisal, change: Callable[[dict[str, Any], dict[str, Any]], object]
) -> None:
    by = signer(bench.issuer)
    token = again(sign_ear(subject(appraisal), by), by, change)
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_MALFORMED"


@pytest.mark.parametrize(
    "damage",
    [
        lambda token: "",
        lambda token: token.rpartition(".")[0],
        lambda token: f"{token}.",
        lambda token: token.replace(".", "=.", 1),
        lambda token: "W10" + token[token.index(".") :],
        lambda token: token + "A" * ear.MAX_EAR_BYTES,
    ],
)
def test_what_is_no_compact_jws_is_refused(bench: Bench, appraisal: Appraisal, damage: Callable[[str], str]) -> None:
    token = damage(sign_ear(subject(appraisal), signer(bench.issuer)))
    assert refusal(lambda: verify_ear(token, bench.issuer.spki, NOW)) == "EAR_MALFORMED"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=300) | st.lists(st.binary(max_size=80), min_size=3, max_size=3))
def test_hostile_text_raises_only_the_readers_errors(text: str | list[bytes]) -> None:
    token = text if isinstance(text, str) else ".".join(base64.urlsafe_b64encode(part).decode() for part in text)
    assert refusal(lambda: verify_ear(token, b"", NOW)).startswith("EAR_")
