"""What an operator has at hand: key files, rendered composes, and the reference values of one development machine."""

from __future__ import annotations

import argparse
import datetime
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from libs import jcs
from libs.policy.compose import Anchors, compose_hash
from services.cli.mesh import operators
from services.cli.policy import command as policy
from services.cli.policy.composes import render_compose

WEIGHTS = "77" * 32


@dataclass(frozen=True, slots=True)
class Desk:
    """A folder with operator-1.pem to operator-3.pem, tenant-admin.pem, kms.json, node.json and reference.json."""

    folder: Path
    keys: tuple[bytes, ...]

    def init(self, *more: str, out: str = "policy.json") -> list[str]:
        """The arguments of a complete `policy init`; what is given in `more` is added."""
        files = [argument for role in ("kms", "node") for argument in ("--compose", str(self.folder / f"{role}.json"))]
        keys = [argument for key in self.keys for argument in ("--operator-key", key.hex())]
        admin = str(self.folder / operators.TENANT_ADMIN)
        return [
            *("policy", "init", "--trust-domain", "mesh.local", "--threshold", "2", *keys, *files),
            *("--tenant-admin-key", admin, "--reference", str(self.folder / "reference.json")),
            *("--model", f"smollm2-135m={WEIGHTS}", "--out", str(self.folder / out), *more),
        ]


def _vendor_root() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "development vendor root")])
    start = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _authority() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "development token authority")])
    start = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def _token_key() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    keys = tuple(operators.public_key(key) for key in operators.ensure_operators(tmp_path, 3))
    operators.ensure_tenant_admin(tmp_path)
    for role in ("kms", "node"):
        text = render_compose(Anchors(role, "mesh.local", keys, 2), "sha256:" + "ab" * 32)
        (tmp_path / f"{role}.json").write_bytes(text)
    measured = compose_hash((tmp_path / "node.json").read_bytes())
    reference = {
        "v": 1,
        "tee_type": "tdx",
        "development": True,
        "vendor_root": _vendor_root().hex(),
        "td_attributes": "0000001000000000",
        "device_id": "dd" * 32,
        "gpu": {
            "issuer": "https://nras.devtee.invalid",
            "keys": {"kid-1": _token_key().hex()},
            "roots": [_authority().hex()],
            "device_root": _vendor_root().hex(),
        },
        "instances": {"node": {"app_id": "aa" * 20, "compose_hash": measured}},
        **{name: hashlib.sha256(name.encode()).hexdigest() for name in ("os_image_hash", "key_provider")},
        **{name: hashlib.sha384(name.encode()).hexdigest() for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")},
    }
    (tmp_path / "reference.json").write_bytes(jcs.dumps(reference))
    return Desk(tmp_path, keys)


@pytest.fixture
def teemesh() -> Callable[..., int]:
    """Run a command as the command line would."""
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    policy.add_parser(subparsers)
    operators.add_parser(subparsers)

    def run(*arguments: str) -> int:
        args = parser.parse_args(arguments)
        code: int = args.run(args)
        return code

    return run
