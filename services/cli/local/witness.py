"""It is responsible for the witness of a local mesh: its certificate, its configuration, and what the ledger is told.

One process on the same machine shows how witnesses work. It protects nobody: whoever owns the state folder owns it too.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from libs.files import write_durably
from libs.identity.certificate import key_pem
from services.cli.local.config import Addresses, write_config
from services.cli.local.policy import LocalOperators
from services.cli.mesh.layout import Layout
from services.cli.mesh.ports import HOST
from services.cli.mesh.roster import TRUST_DOMAIN, WITNESS
from services.cli.terminal.inputs import read_input

NAME = f"witness.{TRUST_DOMAIN}/w1"
ORIGIN = f"{TRUST_DOMAIN}/ledger/1"
_LIFE = dt.timedelta(days=3650)


def write_witness_config(layout: Layout, addresses: Addresses, operators: LocalOperators, policy: Path) -> None:
    """Write the witness's file, and its certificate where it has none. It begins with the given signed policy."""
    if not layout.witness_certificate.exists():
        _write_certificate(layout)
    attested = {
        "trust_domain": TRUST_DOMAIN,
        "operator_keys": [key.hex() for key in operators.public_keys],
        "operator_threshold": operators.threshold,
        "seed_policy": str(policy),
    }
    write_config(
        layout,
        WITNESS,
        {
            "name": NAME,
            "listen": addresses.of(WITNESS),
            "certificate": str(layout.witness_certificate),
            "private_key": str(layout.witness_tls_key),
            "state_dir": str(layout.state(WITNESS)),
            "logs": [{"origin": ORIGIN, "attested": attested}],
        },
    )


def witness_vkey(layout: Layout) -> str:
    """Return the key by which its cosignatures count here. It MUST have run. Raises `InputUnreadable`."""
    return read_input(layout.witness_verifier_keys).decode().partition("\n")[0]


def ledgers_witness(layout: Layout, addresses: Addresses) -> dict[str, Any]:
    """Return what the ledger is told of it. It MUST have run. Raises `InputUnreadable`."""
    return {
        "url": f"https://{addresses.of(WITNESS)}",
        "verifier_key": witness_vkey(layout),
        "ca": str(layout.witness_certificate),
    }


def _write_certificate(layout: Layout) -> None:
    """Self-signed: the ledger is told this very certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_durably(layout.witness_tls_key, key_pem(key))
    write_durably(layout.witness_certificate, certificate.public_bytes(Encoding.PEM), mode=0o644)
