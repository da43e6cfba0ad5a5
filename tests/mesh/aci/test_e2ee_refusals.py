"""E2EE v2: keys, times, nonces and replay, and every error (e2ee-v2 sections 7 and 9)."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.mesh.aci.provider import Provider
from tests.mesh.aci.sealed_prompts import ask, chat, require_sealed, sealed_chat
from tests.mesh.aci.sealing import X25519, Envelope
from tests.mesh.aci.stage import Stage

pytestmark = pytest.mark.mesh


def test_c234_a_key_of_nobody_is_refused(
    stage: Stage, provider: Provider, envelope: Envelope, keyset: dict[str, Any]
) -> None:
    of_a_receipt = keyset["receipt_signing_keys"][0]["public_key"]
    for key in (envelope.suite.new_key().public.hex(), of_a_receipt, "zz", envelope.service_key[:-2]):
        answer = ask(stage, envelope, sealed_chat(envelope), changed={"service": key})
        assert answer.refusal == (400, "e2ee_model_key_mismatch")
    assert not provider.bodies


@pytest.mark.parametrize("offset", [-330, 330, -86_400])
def test_c235_a_time_too_far_away_is_refused(stage: Stage, provider: Provider, envelope: Envelope, offset: int) -> None:
    away = replace(envelope, timestamp=int(time.time()) + offset)
    assert ask(stage, away, sealed_chat(away)).refusal == (400, "e2ee_invalid_timestamp")
    assert not provider.bodies


@pytest.mark.parametrize("text", ["{}.0", "-1", "1e9", "now", "+{}", "9" * 30, "0x10"])
def test_c236_a_time_in_another_form_is_refused(stage: Stage, envelope: Envelope, text: str) -> None:
    value = text.format(envelope.timestamp)
    assert ask(stage, envelope, sealed_chat(envelope), changed={"timestamp": value}).refusal == (
        400,
        "e2ee_invalid_timestamp",
    )


@pytest.mark.parametrize("offset", [-270, 270])
def test_c237_a_time_within_five_minutes_is_accepted(
    stage: Stage, provider: Provider, envelope: Envelope, offset: int
) -> None:
    near = replace(envelope, timestamp=int(time.time()) + offset)
    require_sealed(ask(stage, near, sealed_chat(near)))


@pytest.mark.parametrize("nonce", ["ab" * 31 + "a", "ab" * 32 + "a", "0x" + "ab" * 31, "zz" * 32, "ab" * 16])
def test_c238_a_nonce_in_another_form_is_refused(stage: Stage, envelope: Envelope, nonce: str) -> None:
    wrong = replace(envelope, nonce=nonce)
    assert ask(stage, wrong, sealed_chat(wrong)).refusal == (400, "e2ee_invalid_nonce")


def test_c238_a_nonce_of_either_case_is_accepted(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    upper = replace(envelope, nonce=envelope.nonce.upper())
    require_sealed(ask(stage, upper, sealed_chat(upper)))


def test_c239_a_request_that_comes_again_is_refused(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    require_sealed(ask(stage, envelope, sealed_chat(envelope)))
    assert ask(stage, envelope, sealed_chat(envelope)).refusal == (400, "e2ee_replay_detected")
    assert len(provider.bodies) == 1


def test_c240_a_nonce_is_the_same_in_either_case(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    lower = replace(envelope, nonce="ab" + envelope.nonce[2:])
    require_sealed(ask(stage, lower, sealed_chat(lower)))
    upper = replace(lower, nonce=lower.nonce.upper())
    assert ask(stage, upper, sealed_chat(upper)).refusal == (400, "e2ee_replay_detected")


@pytest.mark.parametrize("form", ["prefix", "upper case"])
def test_c241_a_key_is_the_same_in_another_form(
    stage: Stage, provider: Provider, envelope: Envelope, form: str
) -> None:
    require_sealed(ask(stage, envelope, sealed_chat(envelope)))
    public = envelope.key.public.hex()
    again = "0x" + public if form == "prefix" else public.upper()
    assert ask(stage, envelope, sealed_chat(envelope), changed={"client": again}).refusal == (
        400,
        "e2ee_replay_detected",
    )


def test_c241_a_point_without_its_prefix_is_the_same_key(stage: Stage, provider: Provider, secp256k1: Envelope) -> None:
    require_sealed(ask(stage, secp256k1, sealed_chat(secp256k1)))
    again = ask(stage, secp256k1, sealed_chat(secp256k1), changed={"client": secp256k1.key.public.hex()[2:]})
    assert again.refusal == (400, "e2ee_replay_detected")


def test_c242_another_key_may_not_use_a_nonce_again(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    """Stricter than the text: else a recorded request could be answered to somebody else."""
    require_sealed(ask(stage, envelope, sealed_chat(envelope)))
    other = replace(envelope, key=envelope.suite.new_key())
    assert ask(stage, other, sealed_chat(other)).refusal == (400, "e2ee_replay_detected")


@pytest.mark.parametrize("key", ["zz" * 32, "ab" * 31, "ab" * 40])
def test_c245_a_malformed_key_of_a_client_is_refused(
    stage: Stage, provider: Provider, envelope: Envelope, key: str
) -> None:
    assert ask(stage, envelope, sealed_chat(envelope), changed={"client": key}).refusal == (
        400,
        "e2ee_invalid_public_key",
    )
    assert not provider.bodies


@pytest.mark.parametrize("key", ["00" * 32, "01" + "00" * 31], ids=["zero", "one"])
def test_c245_a_point_of_low_order_is_refused(stage: Stage, provider: Provider, x25519: Envelope, key: str) -> None:
    assert ask(stage, x25519, sealed_chat(x25519), changed={"client": key}).refusal == (400, "e2ee_invalid_public_key")
    assert not provider.bodies


def test_c245_a_point_off_the_curve_is_refused(stage: Stage, provider: Provider, secp256k1: Envelope) -> None:
    off = "04" + "01" * 64
    assert ask(stage, secp256k1, sealed_chat(secp256k1), changed={"client": off}).refusal == (
        400,
        "e2ee_invalid_public_key",
    )
    assert not provider.bodies


def test_c246_a_ciphertext_in_another_form_is_refused(stage: Stage, provider: Provider, envelope: Envelope) -> None:
    good = envelope.seal("messages.0.content", "a")
    last = f"{int(good[-1], 16) ^ 1:x}"
    for value in ("", "00", good[:60], good[:-1], good[:-1] + last, good + "00", "zz" + good[2:], "in clear"):
        fresh = replace(envelope, nonce=secrets.token_hex(32))
        assert ask(stage, fresh, chat(fresh, value)).refusal == (400, "e2ee_decryption_failed")
    assert not provider.bodies


def test_c246_a_body_that_is_no_json_is_refused(stage: Stage, envelope: Envelope) -> None:
    assert ask(stage, envelope, b"{not json").refusal == (400, "e2ee_decryption_failed")


def test_c246_failures_to_decrypt_do_not_tell_why(stage: Stage, envelope: Envelope) -> None:
    good = envelope.seal("messages.0.content", "a")
    bodies = set()
    for value in (good[:-2] + ("00" if good[-2:] != "00" else "01"), replace(envelope, model="x").seal("a", "a")):
        fresh = replace(envelope, nonce=secrets.token_hex(32))
        bodies.add(ask(stage, fresh, chat(fresh, value)).body)
    assert len(bodies) == 1


def test_c251_every_error_has_the_one_shape(stage: Stage, x25519: Envelope) -> None:
    asked: dict[str, dict[str, str | None]] = {
        "e2ee_header_missing": {"nonce": None},
        "e2ee_invalid_version": {"version": "3"},
        "e2ee_invalid_nonce": {"nonce": "0"},
        "e2ee_invalid_timestamp": {"timestamp": "0"},
        "e2ee_model_key_mismatch": {"service": "ab" * 32},
        "e2ee_invalid_public_key": {"client": "ab"},
    }
    for error_type, changed in asked.items():
        fresh = Envelope.to({"algo": X25519, "public_key": x25519.service_key}, x25519.model)
        answer = ask(stage, fresh, sealed_chat(fresh), changed=changed)
        assert answer.refusal == (400, error_type)
        assert (answer.error["code"], answer.error["param"]) == (None, None)
