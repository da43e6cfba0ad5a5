from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from teemesh.kms.v1 import kms_pb2

from libs.errors import MeshError
from libs.policy.signatures import parse_signed
from services.cli.policy.draft import read_signed
from services.cli.policy.publish import PublishedOtherwise, publish_policy
from tests.unit.services.cli.conftest import Desk

PEM = serialization.Encoding.PEM


class OneCa:
    """A throwaway CA whose certificates and keys lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mesh CA")])
        ca = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.path = folder / "ca.pem"
        self.path.write_bytes(ca.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def issue(self, dns_name: str) -> tuple[Path, Path]:
        """Return the paths of a key and its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([]), key).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=True
        )
        key_path, path = self._folder / f"{dns_name}.key", self._folder / f"{dns_name}.pem"
        key_path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        return key_path, path

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
        end = start + datetime.timedelta(hours=1)
        return x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number(), start, end)


class AcceptingKms:
    """A KMS that puts in force whatever it is sent, as long as it reads as a policy."""

    def __init__(self) -> None:
        self.in_force: list[int] = []
        self.digest: bytes | None = None

    def handlers(self) -> grpc.GenericRpcHandler:
        publish = grpc.unary_unary_rpc_method_handler(
            self.publish_policy,
            request_deserializer=kms_pb2.PublishPolicyRequest.FromString,
            response_serializer=kms_pb2.PublishPolicyResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler("teemesh.kms.v1.KmsService", {"PublishPolicy": publish})

    async def publish_policy(
        self, request: kms_pb2.PublishPolicyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> kms_pb2.PublishPolicyResponse:
        assert request.request_id
        policy = parse_signed(request.signed_policy).policy
        self.in_force.append(policy.version)
        return kms_pb2.PublishPolicyResponse(version=policy.version, digest=self.digest or policy.digest)


@pytest.fixture
async def kms(desk: Desk) -> AsyncIterator[AcceptingKms]:
    """Serve the KMS on loopback with mutual TLS, and describe it in mesh.json."""
    ca = OneCa(desk.folder)
    key, certificate = ca.issue("kms.mesh.local")
    operator_key, operator_certificate = ca.issue("operator.mesh.local")
    service = AcceptingKms()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handlers(),))
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], ca.path.read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    mesh = {
        "kms_grpc": f"127.0.0.1:{port}",
        "mesh_ca": ca.path.name,
        "operator_cert": str(operator_certificate),
        "operator_key": operator_key.name,
        "model": "other members are for other commands",
    }
    (desk.folder / "mesh.json").write_text(json.dumps(mesh))
    await server.start()
    try:
        yield service
    finally:
        await server.stop(None)


@pytest.fixture
def signed(desk: Desk, teemesh: Callable[..., int]) -> Path:
    path = desk.folder / "policy.json"
    teemesh(*desk.init())
    for number in (1, 2):
        teemesh("policy", "sign", str(path), "--key", str(desk.folder / f"operator-{number}.pem"))
    return path


async def test_a_policy_reaches_the_kms_over_mutual_tls(desk: Desk, kms: AcceptingKms, signed: Path) -> None:
    await publish_policy(read_signed(signed), desk.folder / "mesh.json", 10)
    assert kms.in_force == [1]


async def test_another_policy_in_force_is_not_taken_for_success(desk: Desk, kms: AcceptingKms, signed: Path) -> None:
    kms.digest = b"d" * 32
    with pytest.raises(PublishedOtherwise) as refusal:
        await publish_policy(read_signed(signed), desk.folder / "mesh.json", 10)
    assert refusal.value.reason == "POLICY_PUBLISHED_OTHERWISE"


async def test_a_kms_of_another_ca_gets_nothing(desk: Desk, kms: AcceptingKms, signed: Path) -> None:
    OneCa(desk.folder)
    with pytest.raises(MeshError):
        await publish_policy(read_signed(signed), desk.folder / "mesh.json", 10)
    assert kms.in_force == []
