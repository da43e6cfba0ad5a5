"""What an honest exchange leaves in a client's hands, made without one, and a mesh.json to judge it by."""

from __future__ import annotations

import json
from pathlib import Path

from libs import jcs
from libs.aci.encoding import digest
from libs.client.checks import Materials
from libs.client.exchange import Exchange
from tests.fakes.attested_mesh import MODEL, TRUST_DOMAIN, AttestedMesh

HOST = "127.0.0.1"
NONCE = "5a" * 32


def gathered(mesh: AttestedMesh, request: bytes, response: bytes) -> Materials:
    """All that a client gathers of an exchange that a node served and the ledger logged."""
    session = mesh.session()
    served = mesh.serve(request, response, session)
    return Materials(
        policy=mesh.policy(),
        mesh_ca=mesh.ca.der,
        host=HOST,
        report=mesh.report(NONCE),
        nonce=NONCE,
        observed_spkis=mesh.keyset.pins(HOST),
        exchange=Exchange(request, digest(response), served.receipt_id, mesh.now - 1, mesh.now + 1, response),
        receipt=served.receipt,
        session=session,
        commitment=jcs.dumps(served.commitment),
        issuer_evidence=mesh.evidence["router"].document,
        acknowledger_evidence=mesh.evidence["ledger"].document,
        ledger_evidence=mesh.evidence["ledger"].document,
        now=mesh.now,
    )


def describe(mesh: AttestedMesh, folder: Path, url: str, api_key: str) -> Path:
    """Write the mesh.json of a mesh whose router is at `url`, files by paths relative to it."""
    trust = mesh.trust()
    (folder / "policy.json").write_bytes(trust.signed_policy)
    (folder / "ca.pem").write_bytes(mesh.ca.pem)
    described = {
        "router_url": url,
        "router_ca": "ca.pem",
        "mesh_ca": "ca.pem",
        "api_key": api_key,
        "model": MODEL,
        "policy": "policy.json",
        "operator_public_keys": [key.hex() for key in trust.operator_keys],
        "operator_threshold": trust.operator_threshold,
        "trust_domain": TRUST_DOMAIN,
    }
    path = folder / "mesh.json"
    path.write_text(json.dumps(described))
    return path
