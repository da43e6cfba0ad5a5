"""Model signatures that OpenSSF's own tool made: `model_signing` 1.1.1, `sign key`, over the three files below."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from libs.weights import Manifest, WeightsDiffer, measure
from libs.weights.signature import SignatureMalformed, SignatureWrong, require_signed, verify_signature

VECTORS = Path(__file__).parent / "vectors" / "model-signing"
FILES = {"config.json": b"{}", "model.safetensors": b"abc", "sub/tok": b"x"}
CURVES = ["p256", "p384"]


def bundle(curve: str) -> bytes:
    return (VECTORS / f"{curve}.sig").read_bytes()


def key(curve: str) -> bytes:
    return (VECTORS / f"{curve}.pem").read_bytes()


def put(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        put(tmp_path / "model", name, content)
    return tmp_path / "model"


async def manifest_of(folder: Path) -> Manifest:
    return (await measure(folder)).manifest


@pytest.mark.parametrize("curve", CURVES)
async def test_what_the_tool_signed_verifies(model: Path, curve: str) -> None:
    require_signed(await manifest_of(model), verify_signature(bundle(curve), key(curve)))


@pytest.mark.parametrize("curve", CURVES)
def test_another_key_did_not_sign(curve: str) -> None:
    (other,) = set(CURVES) - {curve}
    with pytest.raises(SignatureWrong):
        verify_signature(bundle(curve), key(other))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"abd", "model.safetensors has SHA-256"),
        ("tokenizer.json", b"{}", "tokenizer.json is not signed"),
        (".gitattributes", b"", ".gitattributes is not signed"),
        ("sub/tok", None, "sub/tok is signed and not there"),
    ],
)
async def test_other_files_than_the_signed_ones_are_refused(
    model: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is None:
        (model / name).unlink()
    else:
        put(model, name, content)
    with pytest.raises(WeightsDiffer, match=f"^{said}"):
        require_signed(await manifest_of(model), verify_signature(bundle("p256"), key("p256")))


async def test_the_signature_may_lie_beside_the_files(model: Path) -> None:
    put(model, "model.sig", bundle("p256"))
    signed = verify_signature(bundle("p256"), key("p256"))
    require_signed(await manifest_of(model), signed, "model.sig")
    with pytest.raises(WeightsDiffer, match=r"^model\.sig is not signed"):
        require_signed(await manifest_of(model), signed)


def _changed(change: dict[str, Any]) -> bytes:
    value = json.loads(bundle("p256"))
    value["dsseEnvelope"].update(change)
    return json.dumps(value).encode()


def _with_payload(old: str, new: str) -> bytes:
    payload = base64.b64decode(json.loads(bundle("p256"))["dsseEnvelope"]["payload"]).decode()
    assert old in payload
    return _changed({"payload": base64.b64encode(payload.replace(old, new).encode()).decode()})


@pytest.mark.parametrize(("old", "new"), [("config.json", "config.jsom"), ("ba7816", "ba7817"), ("sha256", "sha512")])
def test_a_statement_that_was_changed_is_refused_for_its_signature(old: str, new: str) -> None:
    with pytest.raises(SignatureWrong):
        verify_signature(_with_payload(old, new), key("p256"))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b'{"dsseEnvelope":[]}',
        _changed({"payloadType": "text/plain"}),
        _changed({"payload": "!"}),
        _changed({"signatures": []}),
        _changed({"signatures": json.loads(bundle("p256"))["dsseEnvelope"]["signatures"] * 2}),
        b" " * (9 << 20),
    ],
    ids=["empty", "no envelope", "no object", "another type", "no base64", "unsigned", "signed twice", "too long"],
)
def test_what_is_no_signature_is_refused(document: bytes) -> None:
    with pytest.raises(SignatureMalformed):
        verify_signature(document, key("p256"))


@pytest.mark.parametrize("public_key", [b"", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(public_key: bytes) -> None:
    with pytest.raises(SignatureMalformed):
        verify_signature(bundle("p256"), public_key)
