"""It is responsible for gathering what mesh.json says of a running mesh."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libs.files import write_durably
from libs.identity.certificate import pem_of
from libs.policy.document import Policy
from services.cli.local.config import Addresses
from services.cli.local.engine import MODEL
from services.cli.local.policy import LocalOperators
from services.cli.mesh.layout import Layout
from services.cli.mesh.mesh_file import MeshDescription
from services.cli.mesh.roster import LEDGER_OTHERS, TRUST_DOMAIN, WITNESS, role_of
from services.cli.policy.reference import read_reference


def describe(
    layout: Layout,
    addresses: Addresses,
    operators: LocalOperators,
    policy: Policy,
    *,
    api_key: str,
    ledger_vkey: str,
    witness_vkey: str,
    pids: Mapping[str, int | None],
) -> MeshDescription:
    """Return the description; the CA and the operator's certificate must have been obtained."""
    return MeshDescription(
        router_url=f"https://{addresses.router}",
        # Locally the mesh CA signs the router's outward certificate; in production whoever the operator chooses.
        router_ca=layout.mesh_ca,
        router_grpc=addresses.of("router_grpc"),
        ledger_grpc=addresses.of("ledger"),
        ledger_others=tuple(addresses.of(name) for name in pids if name in LEDGER_OTHERS),
        ledger_http=f"https://{addresses.of('ledger_http')}",
        ledger_vkey=ledger_vkey,
        witness_url=f"https://{addresses.of(WITNESS)}",
        witness_vkey=witness_vkey,
        witness_ca=layout.witness_certificate,
        registry_grpc=(addresses.of("registry"),),
        attestation_grpc=addresses.of("attestation"),
        kms_grpc=tuple(addresses.of(name) for name in pids if role_of(name) == "kms"),
        mesh_ca=layout.mesh_ca,
        operator_cert=layout.operator_certificate,
        operator_key=layout.operator_key,
        operator_public_keys=tuple(key.hex() for key in operators.public_keys),
        operator_threshold=operators.threshold,
        policy=layout.policy(policy.version),
        api_key=api_key,
        model=MODEL,
        vendor_root=layout.vendor_root,
        pccs_url=addresses.pccs_url,
        trust_domain=TRUST_DOMAIN,
        services=pids,
    )


def write_vendor_root(layout: Layout) -> Path:
    """Write the software TEE's root certificate as PEM. Raises what reading the reference values raises."""
    write_durably(layout.vendor_root, pem_of(read_reference(layout.reference).vendor_root), mode=0o644)
    return layout.vendor_root
