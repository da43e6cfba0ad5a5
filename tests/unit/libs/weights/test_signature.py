"""Statements that their maker did sign, and that are refused all the same."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.weights.signature import SignatureMalformed, verify_signature

KEY = ec.generate_private_key(ec.SECP256R1())
FILES = {"a": b"\x01" * 32, "b": b"\x02" * 32}


def public(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def statement() -> dict[str, Any]:
    root = hashlib.sha256(b"".join(FILES.values())).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "m", "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256"},
            "resources": [{"name": n, "digest": d.hex(), "algorithm": "sha256"} for n, d in FILES.items()],
        },
    }


def signed(value: dict[str, Any]) -> bytes:
    payload = json.dumps(value).encode()
    kind = "application/vnd.in-toto+json"
    encoded = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    signature = KEY.sign(encoded, ec.ECDSA(hashes.SHA256()))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    return json.dumps({"dsseEnvelope": envelope}).encode()


def test_the_files_of_a_statement_are_returned() -> None:
    assert verify_signature(signed(statement()), public(KEY)) == FILES


def _of_another_type(value: dict[str, Any]) -> None:
    value["predicateType"] = "https://slsa.dev/provenance/v1"


def _no_statement(value: dict[str, Any]) -> None:
    value["_type"] = "https://in-toto.io/Statement/v0.1"


def _in_shards(value: dict[str, Any]) -> None:
    value["predicate"]["serialization"]["method"] = "shards"


def _by_another_hash(value: dict[str, Any]) -> None:
    value["predicate"]["serialization"]["hash_type"] = "blake2b"


def _a_file_by_another_hash(value: dict[str, Any]) -> None:
    value["predicate"]["resources"][1]["algorithm"] = "sha256-sharded-1024"


def _a_file_twice(value: dict[str, Any]) -> None:
    value["predicate"]["resources"][1]["name"] = "a"


def _less_than_its_subject(value: dict[str, Any]) -> None:
    value["predicate"]["resources"].pop()


def _two_subjects(value: dict[str, Any]) -> None:
    value["subject"] *= 2


def _short_digest(value: dict[str, Any]) -> None:
    value["predicate"]["resources"][0]["digest"] = "01"


@pytest.mark.parametrize(
    "change",
    [
        _of_another_type,
        _no_statement,
        _in_shards,
        _by_another_hash,
        _a_file_by_another_hash,
        _a_file_twice,
        _less_than_its_subject,
        _two_subjects,
        _short_digest,
    ],
)
def test_a_statement_of_another_form_is_refused(change: Any) -> None:
    value = statement()
    change(value)
    with pytest.raises(SignatureMalformed):
        verify_signature(signed(value), public(KEY))


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256K1()), ed25519.Ed25519PrivateKey.generate()])
def test_keys_that_the_form_does_not_have_are_refused(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    with pytest.raises(SignatureMalformed):
        verify_signature(signed(statement()), public(key))
