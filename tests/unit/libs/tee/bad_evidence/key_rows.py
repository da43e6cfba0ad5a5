"""Rows about the keys that sign tokens: certificates that the evidence brings, under an authority that policy pins."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.nvidia.keys import Issuer
from libs.tee.nvidia.token import DetachedEat, key_ids
from services.devtee.nras import ISSUER, TokenShape
from tests.unit.libs.tee.bad_evidence.gpu_rows import bundle
from tests.unit.libs.tee.bad_evidence.links import UNKNOWN, Link, chain, half_a_byte, leaf
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, edited, gpu_rules, presenting, with_gpu
from tests.unit.libs.tee.bench import NOW
from tests.unit.libs.tee.nvidia.gpu_bench import read_claims, signer

_OTHER_ISSUER = "https://other.devtee.invalid"
_KEY_ID = "made-here"

Make = Callable[[Benches], Present]


def _resigned(
    good: list[Any], key: ec.EllipticCurvePrivateKey, issuer: str = ISSUER, key_id: str = _KEY_ID
) -> list[Any]:
    """The same words, signed by another key."""
    sign = signer(key, {"alg": "ES384", "kid": key_id})
    tokens = {name: sign({**read_claims(token), "iss": issuer}) for name, token in good[1].items()}
    digests = {name: ["DIGEST", ["SHA-256", sha256(token.encode()).hexdigest()]] for name, token in tokens.items()}
    return [["JWT", sign({**read_claims(good[0][1]), "iss": issuer, "submods": digests})], tokens]


def certified(
    make: Callable[[], Sequence[Link]], edit: Callable[[list[bytes]], list[bytes]] = lambda ders: ders
) -> Make:
    """A good bundle by the first link's key; the evidence brings all but the last link, which policy pins."""

    def present(benches: Benches) -> Present:
        links = make()
        pem, root = chain(links)
        ends = "-----END CERTIFICATE-----\n"
        ders = [ssl.PEM_cert_to_DER_cert(part + ends) for part in pem.split(ends)[:-1]]
        # A key of another kind signs no such token; its certificate is refused before.
        key = links[0].key if isinstance(links[0].key, ec.EllipticCurvePrivateKey) else Link().key
        return with_gpu(
            benches,
            lambda nonce: _resigned(bundle(benches.gpu, nonce), key),
            keys={_KEY_ID: [der.hex() for der in edit(ders[:-1])]},
            rules=gpu_rules(benches, issuers={ISSUER: Issuer({}, (root,))}),
        )

    return present


def _switches_of_another(benches: Benches) -> Present:
    """Two issuers that policy knows, each vouching for some of the devices."""
    key = ec.generate_private_key(ec.SECP384R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    shape = TokenShape(switches=("77",))
    return with_gpu(
        benches,
        lambda nonce: bundle(benches.gpu, nonce),
        switches=lambda nonce: _resigned(benches.gpu.nras.attest([], nonce, NOW, shape), key, _OTHER_ISSUER),
        rules=gpu_rules(benches, issuers={**benches.gpu.rule.issuers, _OTHER_ISSUER: Issuer({_KEY_ID: spki}, ())}),
    )


def _keys(change: Callable[[dict[str, Any]], Any]) -> Make:
    """GPU evidence whose keys have another shape: they are read before any digest counts."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        gpu = benches.gpu.evidence().to_json()
        gpu["keys"] = change(dict(gpu["keys"]))
        document = edited(bench.evidence(), lambda value: value.update(gpu_evidence=gpu))
        return presenting(document, bench.rules(), bench.context())

    return make


def _put_together(benches: Benches) -> Present:
    """As a service does that brings its own evidence."""
    eat = DetachedEat.parse(benches.gpu.bundle())
    return lambda _steps: GpuEvidence.of(eat, {_KEY_ID: ()}, ())


def _nameless(benches: Benches) -> Present:
    good = benches.gpu.bundle()
    token = signer(benches.gpu.nras.key, {"alg": "ES384"})(read_claims(good[0][1]))
    eat = DetachedEat.parse([["JWT", token], good[1]])
    return lambda _steps: key_ids(eat)


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


_CODE = ExtendedKeyUsageOID.CODE_SIGNING
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)

good_chain = certified(lambda: [leaf(), Link(key=_rsa(), path_length=0), Link()])

_INVALID: list[tuple[str, Make]] = [
    (
        "authority on another curve",
        certified(lambda: [leaf(), Link(key=ec.generate_private_key(ec.SECP256R1())), Link()]),
    ),
    ("leaf over another digest", certified(lambda: [leaf(hash=hashes.SHA3_384()), Link(), Link()])),
    (
        "leaf signed in another way",
        certified(lambda: [leaf(rsa_padding=_PSS), Link(key=_rsa()), Link()]),
    ),
    ("leaf with another kind of key", certified(lambda: [leaf(key=_rsa()), Link(), Link()])),
    ("leaf that is an authority", certified(lambda: [leaf(ca=True), Link(), Link()])),
    ("leaf that may only sign certificates", certified(lambda: [leaf(signs_certificates=True), Link(), Link()])),
    (
        "leaf with an unknown critical extension",
        certified(lambda: [leaf(extensions=[(UNKNOWN, True)]), Link(), Link()]),
    ),
    ("leaf of another name", certified(lambda: [leaf(name="www.example.org"), Link(), Link()])),
    ("leaf of two names", certified(lambda: [leaf(name=("Attestation Service", "www.example.org")), Link(), Link()])),
    (
        "leaf that lives for weeks",
        certified(lambda: [leaf(start=NOW - 8 * 86400), Link(), Link()]),
    ),
    (
        "leaf that signs code",
        certified(lambda: [leaf(extensions=[(x509.ExtendedKeyUsage([_CODE]), False)]), Link(), Link()]),
    ),
    ("leaf signed by a stranger", certified(lambda: [leaf(signed_by=Link().key), Link(), Link()])),
    ("authority that is none", certified(lambda: [leaf(), Link(ca=False), Link()])),
    (
        "leaf with half a byte of signature",
        certified(lambda: [leaf(), Link(), Link()], lambda ders: [half_a_byte(ders[0]), *ders[1:]]),
    ),
    ("leaf that cannot be read", certified(lambda: [leaf(), Link(), Link()], lambda ders: [b"\x30\x00", *ders[1:]])),
]
_MALFORMED: list[tuple[str, Make]] = [
    ("no object", _keys(lambda _: [])),
    ("five", _keys(lambda keys: {f"{name}{number}": each for name, each in keys.items() for number in range(5)})),
    ("one by an odd name", _keys(lambda keys: {f"a {name}": each for name, each in keys.items()})),
    ("one without certificates", _keys(lambda keys: {name: [] for name in keys})),
    ("one with a number for certificates", _keys(lambda keys: dict.fromkeys(keys, 7))),
    ("one with an overlong certificate", _keys(lambda keys: {name: ["00" * 4097] for name in keys})),
]

ROWS = [
    *(Row(f"token keys: {name}", 1, "GPU_EVIDENCE_MALFORMED", make) for name, make in _MALFORMED),
    *(Row(f"token key's chain: {name}", 10, "GPU_TOKEN_KEY_CHAIN_INVALID", make) for name, make in _INVALID),
    Row(
        "token key's chain: authority that ended",
        10,
        "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT",
        certified(lambda: [leaf(), Link(end=NOW - 1), Link()]),
    ),
    Row(
        "token key's chain: leaf not valid yet",
        10,
        "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT",
        certified(lambda: [leaf(start=NOW + 1), Link(), Link()]),
    ),
    Row(
        "token key's chain: pinned authority issued by nobody",
        10,
        "GPU_PINNED_KEY_UNUSABLE",
        certified(lambda: [leaf(), Link(issuer=())]),
    ),
    Row("NVSwitches vouched for by another issuer", 10, "GPU_TOKEN_ISSUERS_DIFFER", _switches_of_another),
    Row("GPU evidence put together with a key without certificates", None, "GPU_EVIDENCE_MALFORMED", _put_together),
    Row("token that does not name its key, read by itself", None, "GPU_TOKEN_MALFORMED", _nameless),
]
