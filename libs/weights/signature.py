"""Responsible for OpenSSF model signatures: which files their maker signed, verified under a key that the caller knows.

A signature is a Sigstore bundle (v0.3) with a DSSE envelope around an in-toto statement of the predicate type
`https://model_signing/signature/v1.0`, as `model_signing sign key` writes it: ECDSA over DSSE's pre-authentication
encoding, with the hash of the curve's size. Statements that serialise files in shards, or hash by another function than
SHA-256, are refused, as are signers named by certificates: for those Sigstore's own roots would have to be kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from libs import jcs
from libs.errors import Code, MeshError
from libs.weights.manifest import Manifest, WeightsDiffer

MAX_BYTES = 8 << 20
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_HASHES: Mapping[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}


class SignatureMalformed(MeshError):
    """The document is not a model signature that is understood here."""

    code = Code.INVALID_ARGUMENT
    reason = "MODEL_SIGNATURE_MALFORMED"


class SignatureWrong(MeshError):
    """It was not signed by this key."""

    code = Code.PERMISSION_DENIED
    reason = "MODEL_SIGNATURE_WRONG"


def verify_signature(bundle: bytes, public_key: bytes) -> Mapping[str, bytes]:
    """Return the SHA-256 of every file that is signed, by name.

    `public_key` is PEM, on P-256, P-384 or P-521. Raises `SignatureMalformed` or `SignatureWrong`.
    """
    if len(bundle) > MAX_BYTES:
        raise SignatureMalformed(f"a signature has at most {MAX_BYTES} bytes")
    try:
        envelope = jcs.loads_object(bundle)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        (only,) = envelope["signatures"]
        signature = base64.b64decode(only["sig"], validate=True)
        kind = envelope["payloadType"]
    except (jcs.JsonMalformed, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise SignatureMalformed("the document is not a Sigstore bundle with one signature over an envelope") from error
    if kind != _PAYLOAD_TYPE:
        raise SignatureMalformed("the envelope holds no in-toto statement")
    _verify(public_key, signature, _encoded(_PAYLOAD_TYPE, payload))
    return _read_statement(payload)


def require_signed(manifest: Manifest, signed: Mapping[str, bytes], signature_file: str | None = None) -> None:
    """Raise `WeightsDiffer` unless every file is signed as it is, and every file that is signed is there.

    What the signer left out is refused too: an engine might read it. `signature_file` is the one name that may be
    unsigned: where the signature itself lies among the files.
    """
    there = {file.name: file.sha256 for file in manifest.files if file.name != signature_file}
    for name in sorted(there.keys() | signed.keys()):
        if name not in signed:
            raise WeightsDiffer(f"{name} is not signed")
        if name not in there:
            raise WeightsDiffer(f"{name} is signed and not there")
        if there[name] != signed[name]:
            raise WeightsDiffer(f"{name} has SHA-256 {there[name].hex()} and {signed[name].hex()} is signed")


def _verify(public_key: bytes, signature: bytes, signed: bytes) -> None:
    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureMalformed("the key is not a public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise SignatureMalformed("the key is on none of P-256, P-384 and P-521")
    try:
        key.verify(signature, signed, ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature as error:
        raise SignatureWrong("the model was not signed by this key") from error


def _encoded(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (its protocol, version 1)."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _read_statement(payload: bytes) -> Mapping[str, bytes]:
    try:
        statement = jcs.loads_object(payload)
        predicate = statement["predicate"]
        form = predicate["serialization"]
        understood = (statement["_type"], statement["predicateType"], form["method"], form["hash_type"])
        (subject,) = statement["subject"]
        root = bytes.fromhex(subject["digest"]["sha256"])
        files = [_resource(each) for each in predicate["resources"]]
    except (jcs.JsonMalformed, KeyError, TypeError, ValueError) as error:
        raise SignatureMalformed("the statement is not a model signature's") from error
    if understood != (_STATEMENT, _PREDICATE, "files", "sha256"):
        raise SignatureMalformed("the statement is not one over whole files by SHA-256")
    signed = dict(files)
    if len(signed) != len(files) or hashlib.sha256(b"".join(digest for _, digest in files)).digest() != root:
        raise SignatureMalformed("the statement's files are not those of its subject")
    return signed


def _resource(value: Mapping[str, Any]) -> tuple[str, bytes]:
    name, digest = value["name"], bytes.fromhex(value["digest"])
    if value["algorithm"] != "sha256" or len(digest) != 32 or not isinstance(name, str):
        raise ValueError
    return name, digest
