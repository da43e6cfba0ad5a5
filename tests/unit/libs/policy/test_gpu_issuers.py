"""What a policy says about token issuers: which keys and authorities it pins, and what it must not pin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.policy.document import PolicyMalformed, read
from libs.tee.nvidia.keys import Issuer
from services.devtee.gpu import GpuVendor
from services.devtee.nras import ISSUER, Nras
from tests.fakes.policy_draft import gpu_member, gpu_root

NOW = 1_790_000_000
VENDOR = GpuVendor.create(NOW)
NRAS = Nras.create(VENDOR.root.certificate, NOW)
ROOT = NRAS.authority.root.der


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


KEY = _spki(NRAS.key)


def _draft(draft: dict[str, Any], **issuer: Any) -> dict[str, Any]:
    gpu = gpu_member(ISSUER, ROOT)
    gpu["issuers"] = [{"issuer": ISSUER, "development": True, **issuer}]
    roots = [{**root, "development": True} for root in draft["vendor_roots"]]
    return {**draft, "vendor_roots": [*roots, gpu_root(VENDOR.root.der)], "gpu": gpu}


@pytest.mark.parametrize(
    ("pins", "expected"),
    [
        ({"roots": [ROOT.hex()]}, Issuer({}, (ROOT,))),
        ({"keys": {}, "roots": [ROOT.hex()]}, Issuer({}, (ROOT,))),
        ({"keys": {"k": KEY.hex()}}, Issuer({"k": KEY}, ())),
        ({"keys": {"k": KEY.hex()}, "roots": []}, Issuer({"k": KEY}, ())),
        ({"keys": {"k": KEY.hex()}, "roots": [ROOT.hex()]}, Issuer({"k": KEY}, (ROOT,))),
    ],
)
def test_policy_pins_keys_or_authorities(draft: dict[str, Any], pins: dict[str, Any], expected: Issuer) -> None:
    gpu = read(_draft(draft, **pins)).hardware.gpu
    assert gpu is not None
    issuer = gpu.issuers[ISSUER]
    assert (dict(issuer.keys), issuer.roots) == (expected.keys, expected.roots)


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "nothing": (dict, "roots must name an authority"),
    "no key and no authority": (lambda: {"keys": {}, "roots": []}, "roots must name an authority"),
    "an authority that is no certificate": (lambda: {"roots": [ROOT[:-1].hex()]}, r"roots\[0\] must be the DER"),
    "a signing key's certificate": (lambda: {"roots": [NRAS.signing.signer.der.hex()]}, r"roots\[0\] must be the DER"),
    "an authority twice": (lambda: {"roots": [ROOT.hex()] * 2}, "roots"),
    "an authority in capitals": (lambda: {"roots": [ROOT.hex().upper()]}, r"roots\[0\]"),
    "an authority that is too long": (lambda: {"roots": ["00" * 8193]}, r"roots\[0\]"),
    "an authority for a list": (lambda: {"roots": ROOT.hex()}, "roots must be a list"),
    "a key that is none": (lambda: {"keys": {"k": "00"}}, "keys.k must be a SubjectPublicKeyInfo"),
    "a key on another curve": (
        lambda: {"keys": {"k": _spki(ec.generate_private_key(ec.SECP256R1())).hex()}},
        "keys.k must be a P-384 key",
    ),
    "a key id of another form": (lambda: {"keys": {"k k": KEY.hex()}}, "keys"),
    "a member that is not known": (lambda: {"roots": [ROOT.hex()], "jwks": ""}, "jwks"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_issuer_that_could_be_misread_is_refused(draft: dict[str, Any], what: str) -> None:
    pins, message = REFUSED[what]
    with pytest.raises(PolicyMalformed, match=message):
        read(_draft(draft, **pins()))
