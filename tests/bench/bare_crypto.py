"""Responsible for what an appraisal cannot do without: its cryptographic operations alone, everything parsed before."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from libs import jcs
from libs.tee.collateral import Collateral
from libs.tee.evidence import Evidence
from libs.tee.nvidia.evidence import GpuEvidence

Operation = Callable[[], object]

_SIGNATURE_BYTES = 96


def operations(evidence: Evidence, vendor_root: bytes, token_root: bytes, now: int) -> list[Operation]:
    """Return the operations behind a verdict: quote and collateral, the challenge, and every signature about GPUs."""
    found = [_quote(evidence, vendor_root, now), _challenge(evidence)]
    return found if evidence.gpu_evidence is None else [*found, *_gpus(evidence.gpu_evidence, token_root)]


def _quote(evidence: Evidence, vendor_root: bytes, now: int) -> Operation:
    assert isinstance(evidence.collateral, Collateral)
    verifier = dcap_qvl.QuoteVerifier(vendor_root)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(evidence.collateral.to_json()))
    policy = dcap_qvl.QuotePolicy.claims_only(now)
    return lambda: verifier.verify_with_policy(evidence.quote, collateral, now, policy)


def _challenge(evidence: Evidence) -> Operation:
    challenge = evidence.challenge
    assert challenge.certificate_der is not None
    assert challenge.signature is not None
    key = x509.load_der_x509_certificate(challenge.certificate_der).public_key()
    signed = b"teemesh/challenge/v1\0" + jcs.dumps(challenge.to_json()["document"])
    return _verification(key, challenge.signature, signed, hashes.SHA256())


def _gpus(evidence: GpuEvidence, token_root: bytes) -> list[Operation]:
    ((_, certificates),) = evidence.keys.items()
    chain = [x509.load_der_x509_certificate(der) for der in (*certificates, token_root)]
    tokens = [evidence.eat.overall, *evidence.eat.submodules.values()]
    found = [_token(chain[0], token) for token in tokens]
    found += _links(chain)
    for raw in evidence.reports:
        devices = x509.load_pem_x509_certificates(raw.certificate_chain.encode())
        signed, signature = raw.report[:-_SIGNATURE_BYTES], raw.report[-_SIGNATURE_BYTES:]
        found.append(_verification(devices[0].public_key(), _der(signature), signed, hashes.SHA384()))
        found += _links(devices)
    return found


def _token(certificate: x509.Certificate, token: str) -> Operation:
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    return _verification(certificate.public_key(), _der(raw), signed.encode(), hashes.SHA384())


def _links(chain: Sequence[x509.Certificate]) -> list[Operation]:
    return [partial(subject.verify_directly_issued_by, issuer) for subject, issuer in pairwise(chain)]


def _verification(key: object, signature: bytes, signed: bytes, algorithm: hashes.HashAlgorithm) -> Operation:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return lambda: key.verify(signature, signed, ec.ECDSA(algorithm))


def _der(signature: bytes) -> bytes:
    half = len(signature) // 2
    return utils.encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
