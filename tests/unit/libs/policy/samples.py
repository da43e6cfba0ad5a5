"""A policy that uses every member which the document knows: what a schema or a comparison must not overlook."""

from __future__ import annotations

import copy
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.policy_draft import gpu_root


def full(draft: dict[str, Any]) -> dict[str, Any]:
    """Return the draft with everything optional stated."""
    whole = copy.deepcopy(draft)
    root = bytes.fromhex(whole["vendor_roots"][0]["certificate"])
    key = ec.derive_private_key(11, ec.SECP384R1()).public_key()
    level = {"bootloader": 3, "tee": 0, "snp": 20, "microcode": 200}
    whole["vendor_roots"] += [
        gpu_root(root[:-1] + bytes([root[-1] ^ 1])),
        {
            "name": "devtee-snp",
            "tee_type": "sev-snp",
            "certificate": (root[:-1] + bytes([root[-1] ^ 2])).hex(),
            "development": True,
        },
    ]
    whole["tcb"]["refused_advisories"] = ["INTEL-SA-1"]
    whole["roles"]["node"].update(
        gpu_required=True,
        tcb={**whole["tcb"], "grace_seconds": 60},
        snp_measurements=[
            {"compose_hash": "0a" * 32, "launch_digest": "0b" * 48, "family_id": "00" * 16, "image_id": "00" * 16}
        ],
    )
    whole["devices"].update(allowed_families=[], revoked_families=["00906ed50000", "genoa-19-11"])
    whole["gpu"] = {
        "issuers": [
            {
                "issuer": "https://nras.devtee.invalid",
                "development": True,
                "keys": {"kid-1": key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()},
                "roots": [],
            }
        ],
        "allowed_ueids": ["12"],
        "revoked_ueids": ["13"],
        "allowed_models": ["GH100 A01 GSP BROM"],
        "maximum_token_age_seconds": 3900,
        "reports_required": True,
    }
    whole["snp"] = {
        "minimum_tcb": {"Milan": level, "Turin": {**level, "fmc": 1}},
        "maximum_crl_age_seconds": 86400,
        "minimum_abi_major": 1,
        "minimum_abi_minor": 55,
        "allow_smt": True,
        "require_single_socket": False,
        "required_platform": ["ALIAS_CHECK_COMPLETE"],
        "id_keys": ["b1" * 48],
        "author_keys": ["b2" * 48],
        "minimum_guest_svn": 1,
    }
    whole["key_releases"].append(
        {
            "name": "agents/claims",
            "roles": ["agent"],
            "algorithm": "ed25519",
            "use": "sign",
            "rotate_after_days": 30,
            "compose_hashes": ["c1" * 32],
        }
    )
    whole["constraints"] = {
        "default": {"verified_only": True, "regions": ["eu-1", "eu-2"]},
        "ab" * 16: {
            "verified_only": False,
            "regions": ["eu-1"],
            "hardware": {"tee_types": ["tdx", "sev-snp"], "gpu_required": True},
            "models": {"smollm2-135m": list(whole["models"]["smollm2-135m"])},
            "max_evidence_age_seconds": 1800,
        },
        "cd" * 16: {"models": {}, "regions": []},
    }
    measurement = whole["roles"]["node"]["measurements"][0]
    whole["foreign_providers"] = [
        {
            "name": "other-mesh",
            "kind": "aci",
            "origin": "https://router.example:8443",
            "models": {"here": "there"},
            "measurements": [measurement],
            "subject": "spiffe://other.example/router/a",
            "session_claims": ["gpu_attested"],
        },
        {
            "name": "worker",
            "kind": "dstack-vllm-proxy",
            "origin": "https://worker.example",
            "models": {"here": "there"},
            "measurements": [measurement],
            "best_effort": True,
            "tenants": ["ab" * 16],
        },
        {
            "name": "commercial",
            "kind": "openai",
            "origin": "https://api.example",
            "models": {"here": "there"},
            "best_effort": True,
            "tenants": ["ab" * 16],
        },
    ]
    whole["retention_months"] = 24
    whole["lifted_revocations"] = ["d1" * 32]
    return whole
