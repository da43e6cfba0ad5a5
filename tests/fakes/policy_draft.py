"""The policy that a mesh of the tests lives under, as the dict that is read and signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.tee.measurement import Measurement


def policy_draft(
    trust_domain: str,
    operators: Sequence[Ed25519PrivateKey],
    vendor_root: bytes,
    measurements: Mapping[str, Measurement],
    **members: Any,
) -> dict[str, Any]:
    """Version 1 with one measurement per role and a threshold of 2; `members` must say when it holds."""
    keys = [key.public_key().public_bytes_raw().hex() for key in operators]
    return {
        "v": 1,
        "version": 1,
        "previous": "0" * 64,
        "trust_domain": trust_domain,
        "operators": {"keys": keys, "threshold": 2},
        "vendor_roots": [
            {"name": "devtee", "tee_type": "tdx", "certificate": vendor_root.hex(), "development": True},
        ],
        "tcb": {
            "statuses": ["UpToDate"],
            "refused_advisories": [],
            "grace_seconds": 0,
            "minimum_evaluation_number": 0,
            "maximum_collateral_age_seconds": 86400,
        },
        "td_attributes": ["0000001000000000"],
        "devices": {"allowed": [], "revoked": []},
        "roles": {
            role: {"measurements": [measurement.to_json()], "gpu_required": False}
            for role, measurement in measurements.items()
        },
        "models": {},
        "key_releases": [{"name": "ledger-keyring", "roles": ["ledger"]}],
        "tenant_admin_key": keys[0],
        "challenge_max_age_seconds": 3900,
        "evidence_max_age_seconds": 3900,
        "revocations": [],
        **members,
    }


def gpu_root(certificate: bytes) -> dict[str, Any]:
    """The root under which a development machine's GPUs sign, as a policy names it."""
    return {"name": "devtee-gpu", "tee_type": "nvidia-gpu", "certificate": certificate.hex(), "development": True}


def gpu_member(issuer: str, root: bytes) -> dict[str, Any]:
    """What a policy says about GPUs: one issuer, whose keys one authority certifies, and reports asked for."""
    return {
        "issuers": [{"issuer": issuer, "development": True, "roots": [root.hex()]}],
        "allowed_ueids": [],
        "revoked_ueids": [],
        "allowed_models": [],
        "maximum_token_age_seconds": 3900,
        "reports_required": True,
    }
