"""Certificates of signing keys: each way in which a chain fails, the rest of it good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import MeshError
from libs.tee.nvidia.keys import Issuer, Keyring, TokenKeyChainInvalid, verify_key_chain
from tests.unit.libs.tee.nvidia.gpu_bench import NOW

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

ROOT_KEY = ec.generate_private_key(ec.SECP384R1())
ISSUING_KEY = rsa.generate_private_key(65537, 2048)
LEAF_KEY = ec.generate_private_key(ec.SECP384R1())


@dataclass(frozen=True, slots=True)
class Shape:
    """One certificate. The default is valid for two days around `NOW`."""

    name: str
    key: Key
    issuer: str
    issuer_key: Key
    authority: bool = False
    path_length: int | None = None
    usage: dict[str, bool] | None = field(default_factory=dict)
    """None states no usage."""
    starts: int = NOW - 3600
    ends: int = NOW + 2 * 86400
    digest: Any = field(default_factory=hashes.SHA384)
    pss: bool = False
    critical: bool = False
    """Whether it has a critical extension that nobody knows."""

    def der(self) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.name))
            .issuer_name(_name(self.issuer))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(self.starts, UTC))
            .not_valid_after(datetime.fromtimestamp(self.ends, UTC))
        )
        if self.authority:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=self.path_length), critical=True)
        if self.usage is not None:
            builder = builder.add_extension(_usage(self.authority, self.usage), critical=True)
        if self.critical:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        how = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if self.pss else None
        certificate = builder.sign(self.issuer_key, self.digest, rsa_padding=how)
        return certificate.public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _usage(is_authority: bool, changes: dict[str, bool]) -> x509.KeyUsage:
    said = {
        "digital_signature": not is_authority,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "key_cert_sign": is_authority,
        "crl_sign": is_authority,
        "encipher_only": False,
        "decipher_only": False,
    }
    return x509.KeyUsage(**{**said, **changes})


def root(**changes: Any) -> bytes:
    return Shape(**{**_like("root", ROOT_KEY, "root", ROOT_KEY), "authority": True, **changes}).der()


def issuing(**changes: Any) -> bytes:
    """As NVIDIA's: an RSA key under an ECDSA signature."""
    return Shape(**{**_like("issuing", ISSUING_KEY, "root", ROOT_KEY), "authority": True, **changes}).der()


def leaf(**changes: Any) -> bytes:
    return Shape(
        **{**_like("Attestation Service leaf", LEAF_KEY, "issuing", ISSUING_KEY), "digest": hashes.SHA256(), **changes}
    ).der()


def _like(name: str, key: Key, issuer: str, issuer_key: Key) -> dict[str, Any]:
    return {"name": name, "key": key, "issuer": issuer, "issuer_key": issuer_key}


ROOT, ISSUING, LEAF = root(), issuing(), leaf()


def _refusal(chain: Sequence[bytes], roots: Sequence[bytes] = (ROOT,), now: int = NOW) -> str:
    with pytest.raises(MeshError) as refusal:
        verify_key_chain(chain, roots, now)
    return refusal.value.reason


@pytest.mark.parametrize(
    ("chain", "roots"),
    [
        ((LEAF, ISSUING), (ROOT,)),
        ((LEAF, ISSUING, ROOT), (ROOT,)),
        ((LEAF, ISSUING), (ISSUING,)),
        ((LEAF, ISSUING, ROOT), (ISSUING,)),
        ((LEAF,), (ISSUING,)),
        ((LEAF, ISSUING), (root(key=LEAF_KEY, issuer_key=LEAF_KEY), ROOT)),
    ],
)
def test_key_is_certified_by_any_pinned_authority_above_it(chain: Sequence[bytes], roots: Sequence[bytes]) -> None:
    signing = verify_key_chain(chain, roots, NOW)
    assert signing.key == LEAF_KEY.public_key()
    assert signing.valid_until == NOW + 2 * 86400


@pytest.mark.parametrize(
    "chain",
    [
        (leaf(usage=None), ISSUING),
        (leaf(usage={"key_agreement": True, "key_encipherment": True}), ISSUING),
        (leaf(digest=hashes.SHA512()), ISSUING),
        (LEAF, issuing(path_length=0)),
    ],
)
def test_what_a_certificate_may_leave_open_is_accepted(chain: Sequence[bytes]) -> None:
    assert verify_key_chain(chain, (ROOT,), NOW).key == LEAF_KEY.public_key()


@pytest.mark.parametrize(
    ("chain", "roots"),
    [
        ((LEAF, ISSUING), ()),
        ((LEAF, ISSUING), (root(name="other", issuer="other"),)),
        ((LEAF,), (ROOT,)),
        ((ROOT,), (LEAF,)),
        ((LEAF, ISSUING), (LEAF,)),
    ],
)
def test_key_under_an_authority_that_policy_does_not_pin_is_refused(
    chain: Sequence[bytes], roots: Sequence[bytes]
) -> None:
    assert _refusal(chain, roots) == "GPU_TOKEN_KEY_NOT_TRUSTED"


OTHER_KEY = ec.generate_private_key(ec.SECP384R1())
SMALL_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it must be refused
P256_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param((b"", ISSUING), id="no certificate"),
        pytest.param((LEAF[:-1], ISSUING), id="half a certificate"),
        pytest.param((LEAF + b"\0", ISSUING), id="more than a certificate"),
        pytest.param((leaf(issuer_key=OTHER_KEY, digest=hashes.SHA384()), ISSUING), id="leaf signed by another key"),
        pytest.param((LEAF, issuing(issuer_key=OTHER_KEY)), id="authority signed by another key"),
        pytest.param((leaf(issuer="elsewhere"), ISSUING), id="leaf that names another issuer"),
        pytest.param((LEAF, LEAF, ISSUING), id="leaf under itself"),
        pytest.param((LEAF, issuing(authority=False)), id="issuer that is no authority"),
        pytest.param((LEAF, issuing(usage={"key_cert_sign": False})), id="issuer that may not issue"),
        pytest.param((LEAF, issuing(usage=None)), id="issuer that does not say that it may issue"),
        pytest.param((leaf(authority=True), ISSUING), id="leaf that is an authority"),
        pytest.param((leaf(usage={"digital_signature": False}), ISSUING), id="leaf that may not sign"),
        pytest.param((leaf(critical=True), ISSUING), id="leaf with an unknown critical extension"),
        pytest.param((LEAF, issuing(critical=True)), id="authority with an unknown critical extension"),
        pytest.param((leaf(key=P256_KEY), ISSUING), id="key on another curve"),
        pytest.param((leaf(key=ISSUING_KEY), ISSUING), id="RSA key"),
        pytest.param((leaf(issuer_key=SMALL_KEY), issuing(key=SMALL_KEY)), id="authority with a small RSA key"),
        pytest.param((leaf(issuer_key=P256_KEY), issuing(key=P256_KEY)), id="authority on another curve"),
        pytest.param((leaf(digest=hashes.SHA224()), ISSUING), id="hash that is not accepted"),
        pytest.param((leaf(pss=True), ISSUING), id="padding that is not accepted"),
    ],
)
def test_chain_that_does_not_hold_together_is_refused(chain: Sequence[bytes]) -> None:
    assert _refusal(chain) == "GPU_TOKEN_KEY_CHAIN_INVALID"


def test_authority_that_may_have_no_authority_below_it_has_none() -> None:
    narrow = root(path_length=0)
    assert _refusal((LEAF, ISSUING), (narrow,)) == "GPU_TOKEN_KEY_CHAIN_INVALID"
    assert _refusal((LEAF, ISSUING, narrow), (narrow,)) == "GPU_TOKEN_KEY_CHAIN_INVALID"


def test_authority_of_the_pinned_ones_name_with_another_key_is_refused() -> None:
    assert _refusal((LEAF, ISSUING), (root(key=OTHER_KEY, issuer_key=OTHER_KEY),)) == "GPU_TOKEN_KEY_CHAIN_INVALID"


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("times", [{"ends": NOW - 1}, {"starts": NOW + 1}])
def test_chain_with_a_certificate_that_is_not_valid_now_is_refused(place: int, times: dict[str, int]) -> None:
    chain = [make(**times) if index == place else make() for index, make in enumerate((leaf, issuing, root))]
    assert _refusal(chain[:2], chain[2:]) == "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT"
    assert _refusal(chain, chain[2:]) == "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_key_is_good_until_the_first_of_its_certificates_ends(place: int) -> None:
    chain = [make(ends=NOW) if index == place else make() for index, make in enumerate((leaf, issuing, root))]
    assert verify_key_chain(chain[:2], chain[2:], NOW).valid_until == NOW


@pytest.mark.parametrize("pin", [b"", b"not a certificate", ROOT[:-1]])
def test_pin_that_is_no_certificate_is_refused(pin: bytes) -> None:
    assert _refusal((LEAF, ISSUING), (ROOT, pin)) == "GPU_PINNED_KEY_UNUSABLE"


def test_each_chain_is_verified_once() -> None:
    keyring = Keyring({"issuer": Issuer({}, (ROOT,))}, {"k": (LEAF, ISSUING)}, NOW)
    assert keyring.signing_key("issuer", "k") is keyring.signing_key("issuer", "k")


def test_key_that_an_issuer_may_use_another_may_not() -> None:
    issuers = {"issuer": Issuer({}, (ROOT,)), "other": Issuer({}, ())}
    keyring = Keyring(issuers, {"k": (LEAF, ISSUING)}, NOW)
    assert keyring.signing_key("issuer", "k").key == LEAF_KEY.public_key()
    with pytest.raises(MeshError) as refusal:
        keyring.signing_key("other", "k")
    assert refusal.value.reason == "GPU_TOKEN_KEY_NOT_TRUSTED"


@given(st.integers(0, len(LEAF) - 1), st.integers(1, 255))
def test_no_byte_of_the_keys_certificate_can_be_changed(at: int, by: int) -> None:
    changed = bytearray(LEAF)
    changed[at] ^= by
    with pytest.raises(MeshError) as refusal:
        verify_key_chain((bytes(changed), ISSUING), (ROOT,), NOW)
    assert refusal.value.reason.startswith("GPU_TOKEN_KEY_")


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_any_bytes_are_refused_with_a_reason(chain: list[bytes]) -> None:
    with pytest.raises(TokenKeyChainInvalid):
        verify_key_chain(chain, (ROOT,), NOW)
