"""The E2EE v2 client of tests/mesh/aci, which checks the service, against the published and derived vectors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.mesh.aci.sealing import (
    SECP256K1,
    SUITES,
    X25519,
    Key,
    Secp256k1Key,
    X25519Key,
    request_aad,
    response_aad,
    seal,
    unseal,
)

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="module")
def vectors() -> dict[str, dict[str, Any]]:
    folder = os.environ.get("TEEMESH_FIXTURES")
    if folder is None:
        pytest.skip("TEEMESH_FIXTURES names no folder with aci-vectors.json")
    head = json.loads((Path(folder) / "aci-vectors.json").read_text(encoding="utf-8"))
    return {vector["id"]: vector for vector in head["vectors"]}


def test_associated_data_is_the_vectors(vectors: dict[str, dict[str, Any]]) -> None:
    for name, made in (("e2ee.request_aad", request_aad), ("e2ee.response_aad", response_aad)):
        asked = vectors[name]["inputs"]
        context = [asked[member] for member in ("algo", "model", "field", "nonce", "ts", "id") if member in asked]
        assert made(*context).decode() == vectors[name]["expected"]["aad_utf8"]


def key(algo: str, hexadecimal: str) -> Key:
    if algo == X25519:
        return X25519Key(X25519PrivateKey.from_private_bytes(bytes.fromhex(hexadecimal)))
    return Secp256k1Key(ec.derive_private_key(int(hexadecimal, 16), ec.SECP256K1()))


@pytest.mark.parametrize(("algo", "name", "secret"), [(X25519, "x25519", "seed"), (SECP256K1, "secp256k1", "scalar")])
def test_a_field_is_sealed_and_unsealed_to_the_byte(
    vectors: dict[str, dict[str, Any]], algo: str, name: str, secret: str
) -> None:
    vector = vectors[f"derived.e2ee.{name}"]
    asked, expected = vector["inputs"], vector["expected"]
    suite, service = SUITES[algo], key(algo, asked[f"service_{secret}_hex"])
    aad, plaintext = asked["aad_utf8"].encode(), asked["plaintext_utf8"].encode()
    sealed = seal(
        suite,
        service.public,
        plaintext,
        aad,
        ephemeral=key(algo, asked[f"ephemeral_{secret}_hex"]),
        nonce=bytes.fromhex(asked["aes_nonce_hex"]),
    )
    assert sealed == expected["ciphertext_hex"]
    assert unseal(suite, service, sealed, aad) == plaintext
