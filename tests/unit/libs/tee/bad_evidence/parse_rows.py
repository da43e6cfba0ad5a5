"""Rows about size and shape: documents and key sets that are refused before anything in them is judged (step 1)."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from libs.tee.evidence import MAX_DOCUMENT_BYTES
from libs.tee.nvidia.jwks import MAX_BYTES, read_jwks
from libs.tee.nvidia.token import MAX_TOKEN_BYTES
from services.devtee.nras import ABSENT
from tests.unit.libs.tee.bad_evidence.gpu_rows import bundle
from tests.unit.libs.tee.bad_evidence.links import Link, chain
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, SnpCase, edited, presenting, with_gpu
from tests.unit.libs.tee.bad_evidence.tdx_rows import version_5
from tests.unit.libs.tee.nvidia.gpu_bench import base64url, read_claims
from tests.unit.libs.tee.nvidia.gpu_bench import edited as without_absent

Make = Callable[[Benches], Present]


def _document(change: Callable[[dict[str, Any]], object]) -> Make:
    """Good evidence of a TD, its document written down again with a change."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        return presenting(
            edited(bench.evidence(), lambda value: _discard(change(value))), bench.rules(), bench.context()
        )

    return make


def _discard(_value: object) -> None:
    """What a changing call returned says nothing."""


def _bytes(change: Callable[[bytes], bytes]) -> Make:
    return lambda b: presenting(change(b.tdx.evidence().document), b.tdx.rules(), b.tdx.context())


def _quote(change: Callable[[bytes], bytes]) -> Make:
    return _document(lambda value: value.update(quote=change(bytes.fromhex(value["quote"])).hex()))


def _put(form: str, at: int, value: int) -> Make:
    def change(quote: bytes) -> bytes:
        data = bytearray(quote)
        struct.pack_into(form, data, at, value)
        return bytes(data)

    return _quote(change)


def _slack(quote: bytes) -> bytes:
    """Eight bytes more of authentication data than its parts fill."""
    data = bytearray(quote) + bytes(8)
    struct.pack_into("<I", data, 632, struct.unpack_from("<I", data, 632)[0] + 8)
    return bytes(data)


def _longer(at: int) -> Callable[[bytes], bytes]:
    """State one byte more than there is, in a length of four bytes."""

    def change(quote: bytes) -> bytes:
        data = bytearray(quote)
        struct.pack_into("<I", data, at, struct.unpack_from("<I", data, at)[0] + 1)
        return bytes(data)

    return change


def _challenge(change: Callable[[dict[str, Any]], object]) -> Make:
    return _document(lambda value: change(value["challenge"]))


def _said(**members: Any) -> Make:
    return _challenge(lambda challenge: challenge["document"].update(members))


def _certificate(make: Callable[[Benches], bytes]) -> Make:
    """A challenge whose certificate is this."""

    def present(benches: Benches) -> Present:
        bench, der = benches.tdx, make(benches)
        document = edited(bench.evidence(), lambda value: value["challenge"].update(certificate=der.hex()))
        return presenting(document, bench.rules(), bench.context())

    return present


def _event(register: int, **members: Any) -> Make:
    """The first event of a register says something else."""

    def change(value: dict[str, Any]) -> None:
        next(event for event in value["event_log"] if event["imr"] == register).update(members)

    return _document(change)


def _snp(change: Callable[[dict[str, Any]], object]) -> Make:
    def make(benches: Benches) -> Present:
        one = SnpCase(benches.chip, benches.tdx)
        return presenting(edited(one.evidence(), lambda value: _discard(change(value))), one.rules(), one.context())

    return make


def _gpu(change: Callable[[dict[str, Any]], object]) -> Make:
    """GPU evidence of another shape: no digest of it counts before it can be read."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        gpu = benches.gpu.evidence(reports=benches.gpu.posted()[:1]).to_json()
        change(gpu)
        document = edited(bench.evidence(), lambda value: value.update(gpu_evidence=gpu))
        return presenting(document, bench.rules(), bench.context())

    return make


def _token(change: Callable[[list[Any]], Any]) -> Make:
    def make(benches: Benches) -> Present:
        return with_gpu(benches, lambda nonce: change(bundle(benches.gpu, nonce)))

    return make


def _renamed(benches: Benches) -> Present:
    """A device by a name of its own, which the overall token lists as well."""

    def token(nonce: bytes) -> Any:
        (word, overall), tokens = bundle(benches.gpu, nonce)
        tokens = {"GPU-0": tokens["GPU-0"], "CPU-0": tokens["GPU-1"]}
        digests = {name: ["DIGEST", ["SHA-256", sha256(text.encode()).hexdigest()]] for name, text in tokens.items()}
        return [[word, benches.gpu.nras.sign({**read_claims(overall), "submods": digests})], tokens]

    return with_gpu(benches, token)


def _long(name: str, size: int) -> Callable[[dict[str, Any]], object]:
    return lambda gpu: gpu["reports"][0].update({name: "00" * size})


def _key_set(change: Callable[[dict[str, Any]], Any], **key: Any) -> Make:
    """An issuer's key set, as policy pins it."""

    def make(benches: Benches) -> Present:
        document = benches.gpu.nras.jwks()
        document["keys"] = [without_absent(document["keys"][0], key)]
        data = json.dumps(change(document)).encode()
        return lambda _steps: read_jwks(data)

    return make


def _key(**key: Any) -> Make:
    return _key_set(lambda document: document, **key)


def good_key_set(**key: Any) -> Make:
    return _key(**key)


def _set_of(data: bytes) -> Make:
    return lambda _: lambda _steps: read_jwks(data)


def _padded(benches: Benches) -> Present:
    data = json.dumps(benches.gpu.nras.jwks()).encode().ljust(MAX_BYTES + 1)
    return lambda _steps: read_jwks(data)


def _certified(benches: Benches) -> Present:
    """A key beside the certificate of another."""
    der = base64.b64encode(benches.gpu.vendor.root.der).decode()
    return _key(x5c=[der])(benches)


def _object_of_certificates(benches: Benches) -> Present:
    """The key's own certificates, as the names of members."""
    return _key(x5c=dict.fromkeys(benches.gpu.nras.jwks()["keys"][0]["x5c"], 0))(benches)


def _overlong_certificate(benches: Benches) -> Present:
    """A key with its own certificate, which holds more than it needs."""
    filler = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), bytes(8192))
    link = Link(extensions=[(filler, False)])
    numbers = link.key.public_key().public_numbers()
    x, y = (base64url(part.to_bytes(48, "big")) for part in (numbers.x, numbers.y))
    return _key(x=x, y=y, x5c=[base64.b64encode(chain([link])[1]).decode()])(benches)


_DOCUMENTS: list[tuple[str, str, Make]] = [
    ("overlong document", "EVIDENCE_TOO_LARGE", _document(lambda v: v.update(app_compose="c" * MAX_DOCUMENT_BYTES))),
    ("document with a newline behind it", "EVIDENCE_MALFORMED", _bytes(lambda data: data + b"\n")),
    ("document that is cut off", "JSON_MALFORMED", _bytes(lambda data: data[:-1])),
    ("document of version 2", "EVIDENCE_MALFORMED", _document(lambda v: v.update(v=2))),
    ("document of version true", "EVIDENCE_MALFORMED", _document(lambda v: v.update(v=True))),
    ("document with a member that is not known", "EVIDENCE_MALFORMED", _document(lambda v: v.update(insecure=True))),
    ("document without a member", "EVIDENCE_MALFORMED", _document(lambda v: v.pop("gpu_evidence"))),
    (
        "document of an unknown technology",
        "TEE_TYPE_NOT_SUPPORTED",
        _document(lambda v: v.update(tee_type="simulator")),
    ),
    ("no key", "EVIDENCE_MALFORMED", _document(lambda v: v.update(spki=""))),
    ("overlong key", "EVIDENCE_MALFORMED", _document(lambda v: v.update(spki="00" * 4097))),
    ("key in capitals", "EVIDENCE_MALFORMED", _document(lambda v: v.update(spki=v["spki"].upper()))),
    ("key that is no hex", "EVIDENCE_MALFORMED", _document(lambda v: v.update(spki=v["spki"][:-2] + "zz"))),
    ("claims that are no object", "EVIDENCE_MALFORMED", _document(lambda v: v.update(claims=[]))),
    ("app-compose that is no text", "EVIDENCE_MALFORMED", _document(lambda v: v.update(app_compose=7))),
    ("padded quote", "EVIDENCE_MALFORMED", _quote(lambda quote: quote + bytes(70))),
    ("quote with a tail", "QUOTE_MALFORMED", _quote(lambda quote: quote + b"\x01")),
    ("quote that is cut off", "QUOTE_MALFORMED", _quote(lambda quote: quote[:-1])),
    ("quote that is hardly begun", "QUOTE_MALFORMED", _quote(lambda quote: quote[:47])),
    ("quote of an enclave", "QUOTE_MALFORMED", _put("<I", 4, 0)),
    ("quote with another kind of key", "QUOTE_MALFORMED", _put("<H", 2, 3)),
    ("quote of version 3", "QUOTE_MALFORMED", _put("<H", 0, 3)),
    ("quote of version 5 with a report of another size", "QUOTE_MALFORMED", version_5(bytes(48), body_type=2)),
    ("quote without its certificate chain", "QUOTE_MALFORMED", _put("<H", 1252, 4)),
    ("quote with slack inside", "QUOTE_MALFORMED", _quote(_slack)),
    ("quote with a longer outer part", "QUOTE_MALFORMED", _quote(_longer(766))),
    ("quote with a longer inner part", "QUOTE_MALFORMED", _quote(_longer(1254))),
    ("log that is no list", "EVENT_LOG_MALFORMED", _document(lambda v: v.update(event_log={}))),
    ("log of 513 events", "EVENT_LOG_MALFORMED", _document(lambda v: v.update(event_log=v["event_log"][:1] * 513))),
    ("boot event without a digest", "EVENT_LOG_MALFORMED", _event(0, digest="")),
    ("boot event in register 3", "EVENT_LOG_MALFORMED", _event(3, event_type=4)),
    ("event without a name", "EVENT_LOG_MALFORMED", _event(3, event="")),
    ("event with a colon in its name", "EVENT_LOG_MALFORMED", _event(3, event="app-id:x")),
    ("event of register 4", "EVENT_LOG_MALFORMED", _event(3, imr=4)),
    ("event with half a digest", "EVENT_LOG_MALFORMED", _event(3, digest="00" * 24)),
    (
        "collateral with a tenth member",
        "COLLATERAL_MALFORMED",
        _document(lambda v: v["collateral"].update(pck_certificate_chain="")),
    ),
    ("collateral without a member", "COLLATERAL_MALFORMED", _document(lambda v: v["collateral"].pop("pck_crl"))),
    ("challenge that is no object", "CHALLENGE_MALFORMED", _document(lambda v: v.update(challenge="00"))),
    ("challenge without its certificate", "CHALLENGE_MALFORMED", _challenge(lambda c: c.update(certificate=None))),
    ("challenge with a long signature", "CHALLENGE_MALFORMED", _challenge(lambda c: c.update(signature="00" * 73))),
    ("challenge with a long certificate", "CHALLENGE_MALFORMED", lambda b: _long_certificate(b)),
    ("challenge of nobody", "CHALLENGE_MALFORMED", _said(issuer="")),
    ("challenge with a short nonce", "CHALLENGE_MALFORMED", _said(random="00" * 31)),
    ("challenge before time", "CHALLENGE_MALFORMED", _said(issued_at=-1)),
    ("SNP: evidence with an event log", "EVIDENCE_MALFORMED", lambda b: _with_log(b)),
    ("GPU evidence of version 2", "GPU_EVIDENCE_MALFORMED", _gpu(lambda gpu: gpu.update(v=2))),
    ("GPU evidence of version true", "GPU_EVIDENCE_MALFORMED", _gpu(lambda gpu: gpu.update(v=True))),
    ("GPU evidence with a number for reports", "GPU_EVIDENCE_MALFORMED", _gpu(lambda gpu: gpu.update(reports=7))),
    ("GPU evidence of another vendor", "GPU_EVIDENCE_MALFORMED", _gpu(lambda gpu: gpu.update(vendor="amd"))),
    (
        "GPU evidence with 17 reports",
        "GPU_EVIDENCE_MALFORMED",
        _gpu(lambda gpu: gpu.update(reports=gpu["reports"] * 17)),
    ),
    ("GPU evidence with a long report", "GPU_EVIDENCE_MALFORMED", _gpu(_long("report", 16385))),
    ("GPU evidence with a long chain", "GPU_EVIDENCE_MALFORMED", _gpu(_long("certificate_chain", 16385))),
    ("bundle without a pair", "GPU_TOKEN_MALFORMED", _token(lambda good: [good[0]])),
    ("bundle without devices", "GPU_TOKEN_MALFORMED", _token(lambda good: [good[0], {}])),
    (
        "bundle with a number for a token",
        "GPU_TOKEN_MALFORMED",
        _token(lambda good: [good[0], {**good[1], "GPU-0": 7}]),
    ),
    ("bundle with a device by another name", "GPU_TOKEN_MALFORMED", _renamed),
    (
        "bundle with an overlong token",
        "GPU_TOKEN_MALFORMED",
        _token(lambda good: [["JWT", good[0][1] + "A" * MAX_TOKEN_BYTES], good[1]]),
    ),
]
_KEY_SETS: list[tuple[str, Make]] = [
    ("overlong", lambda b: _padded(b)),
    ("not JSON", _set_of(b"")),
    ("with a number for keys", _key_set(lambda _: {"keys": 7})),
    ("with a text for a key", _key_set(lambda _: {"keys": ["EC"]})),
    ("without keys", _key_set(lambda _: {"keys": []})),
    ("with 129 keys", _key_set(lambda d: {"keys": [{**d["keys"][0], "kid": str(n)} for n in range(129)]})),
    ("with a key twice", _key_set(lambda d: {"keys": d["keys"] * 2})),
    ("with a secret key", _key(d="AA")),
    ("with a key on another curve", _key(crv="P-256")),
    ("with a key of another kind", _key(kty="OKP")),
    ("with a key for another algorithm", _key(alg="ES256")),
    ("with a key for encryption", _key(use="enc")),
    ("with a nameless key", _key(kid="")),
    ("with a number for a key's name", _key(kid=7)),
    ("with a key's name that is not ASCII", _key(kid="é")),
    ("with a key without a name", _key(kid=ABSENT)),
    ("with a short coordinate", _key(x="AA")),
    ("with a coordinate that is no text", _key(y=7)),
    ("with a key that is no point", _key(x="A" * 64)),
    ("with the certificate of another key", _certified),
    ("with an object for certificates", lambda b: _object_of_certificates(b)),
    ("with no certificate in a list of them", _key(x5c=[])),
    ("with a certificate that cannot be read", _key(x5c=["AAAA"])),
    ("with a certificate that is no text", _key(x5c=[7])),
    ("with an overlong certificate", _overlong_certificate),
]

ROWS = [
    *(Row(name, 1, reason, make) for name, reason, make in _DOCUMENTS),
    # The certificate is read where the challenge is judged: an own challenge has none.
    Row("challenge with a certificate that is none", 5, "CHALLENGE_MALFORMED", _certificate(lambda _: b"\x30\x00")),
    Row(
        "challenge with a certificate on another curve",
        5,
        "CHALLENGE_MALFORMED",
        _certificate(lambda b: b.gpu.vendor.root.certificate.public_bytes(Encoding.DER)),
    ),
    Row(
        "challenge with a certificate of another kind of key",
        5,
        "CHALLENGE_MALFORMED",
        _certificate(lambda b: b.chip.root),
    ),
    *(Row(f"key set {name}", None, "GPU_JWKS_MALFORMED", make) for name, make in _KEY_SETS),
]


def _long_certificate(benches: Benches) -> Present:
    """The issuer's own key in a certificate that holds more than it needs: the challenge would count otherwise."""
    bench = benches.tdx
    filler = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), bytes(16384))
    link = Link(key=bench.issuer.key, hash=hashes.SHA256(), extensions=[(filler, False)])
    return _certificate(lambda _: chain([link])[1])(benches)


def _with_log(benches: Benches) -> Present:
    one = SnpCase(benches.chip, benches.tdx)
    log = [event.to_json() for event in benches.tdx.event_log]
    return presenting(edited(one.evidence(), lambda v: v.update(event_log=log)), one.rules(), one.context())
