"""The E2EE v2 vectors against the product's own side of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.aci.e2ee.binding import Binding
from libs.aci.e2ee.suites import SECP256K1_ALGO, SUITES, X25519_ALGO, FieldNotOpened, Secp256k1Key, X25519Key

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="module")
def vectors() -> dict[str, dict[str, Any]]:
    folder = os.environ.get("TEEMESH_FIXTURES")
    if folder is None:
        pytest.skip("TEEMESH_FIXTURES names no folder with aci-vectors.json")
    head = json.loads((Path(folder) / "aci-vectors.json").read_text(encoding="utf-8"))
    return {vector["id"]: vector for vector in head["vectors"]}


@pytest.mark.parametrize("direction", ["request", "response"])
def test_a_fields_binding(vectors: dict[str, dict[str, Any]], direction: str) -> None:
    vector = vectors[f"e2ee.{direction}_aad"]
    asked = vector["inputs"]
    binding = Binding(asked["algo"], asked["model"], asked["nonce"], asked["ts"])
    field = asked["field"]
    made = binding.of_request(field) if direction == "request" else binding.of_response(field, asked["id"])
    assert made.decode() == vector["expected"]["aad_utf8"]


def key(algo: str, hexadecimal: str) -> X25519Key | Secp256k1Key:
    if algo == X25519_ALGO:
        return X25519Key(X25519PrivateKey.from_private_bytes(bytes.fromhex(hexadecimal)))
    return Secp256k1Key(ec.derive_private_key(int(hexadecimal, 16), ec.SECP256K1()))


@pytest.mark.parametrize(
    ("algo", "name", "secret"), [(X25519_ALGO, "x25519", "seed"), (SECP256K1_ALGO, "secp256k1", "scalar")]
)
def test_a_field_of_others_is_opened(vectors: dict[str, dict[str, Any]], algo: str, name: str, secret: str) -> None:
    """Ephemeral key and nonce are in the ciphertext, so derivation, salt and layout are all in what opens it."""
    vector = vectors[f"derived.e2ee.{name}"]
    asked, sealed = vector["inputs"], vector["expected"]["ciphertext_hex"]
    suite, service, aad = SUITES[algo], key(algo, asked[f"service_{secret}_hex"]), asked["aad_utf8"].encode()
    assert suite.open(service, sealed, aad).decode() == asked["plaintext_utf8"]
    with pytest.raises(FieldNotOpened):
        suite.open(service, sealed, aad + b" ")


def test_a_service_key(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["keys.e2ee-1"]
    assert key(X25519_ALGO, vector["inputs"]["seed_hex"]).public.hex() == vector["expected"]["public_key_hex"]
