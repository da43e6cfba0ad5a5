from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.rpc.address import AddressMalformed
from libs.rpc.channel import MESSAGE_BYTES, PeerUnreachable, fetch_leaf, open_channel
from libs.rpc.tls import load_client_context
from tests.fakes.pki import ThrowawayCa
from tests.fakes.small_mesh import SERVER_NAME, SmallMesh


async def test_the_leaf_comes_back_and_pins_the_channel() -> None:
    mesh = SmallMesh()
    key, certificate = mesh.ca.leaf("spiffe://mesh.test/router/1", "router.mesh.test")
    async with mesh.serve() as server:
        leaf = await fetch_leaf(f"127.0.0.1:{server.port}", server_name=SERVER_NAME, timeout=5, ca_pem=mesh.ca.pem)
        pem = x509.load_der_x509_certificate(leaf).public_bytes(Encoding.PEM)
        assert pem == mesh.server_certificate
        async with open_channel(
            f"127.0.0.1:{server.port}",
            root_pem=pem,
            server_name=SERVER_NAME,
            key_pem=key,
            certificate_pem=certificate,
            idempotent=["/teemesh.kms.v1.KmsService/GetStatement"],
        ) as channel:
            await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=5)


@pytest.mark.parametrize(
    ("server_bytes", "client_bytes", "passes"),
    [
        (MESSAGE_BYTES, MESSAGE_BYTES, False),
        (2 * MESSAGE_BYTES, MESSAGE_BYTES, False),
        (MESSAGE_BYTES, 2 * MESSAGE_BYTES, False),
        (2 * MESSAGE_BYTES, 2 * MESSAGE_BYTES, True),
    ],
)
async def test_a_larger_answer_passes_where_both_sides_are_to_take_it(
    server_bytes: int, client_bytes: int, passes: bool
) -> None:
    async def large() -> kms_pb2.GetStatementResponse:
        return kms_pb2.GetStatementResponse(statement=bytes(MESSAGE_BYTES))

    mesh = SmallMesh()
    key, certificate = mesh.ca.leaf("spiffe://mesh.test/router/1", "router.mesh.test")
    async with (
        mesh.serve(statement=large, answer_bytes=server_bytes) as server,
        open_channel(
            f"127.0.0.1:{server.port}",
            root_pem=mesh.ca.pem,
            server_name=SERVER_NAME,
            key_pem=key,
            certificate_pem=certificate,
            answer_bytes=client_bytes,
        ) as channel,
    ):
        asking = kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=10)
        if passes:
            assert len((await asking).statement) == MESSAGE_BYTES
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asking
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_server_with_another_leaf_of_the_same_ca_does_not_pass_the_pin() -> None:
    mesh = SmallMesh()
    key, other = mesh.ca.leaf("spiffe://mesh.test/kms/2", SERVER_NAME)
    async with (
        mesh.serve() as server,
        open_channel(
            f"127.0.0.1:{server.port}", root_pem=other, server_name=SERVER_NAME, key_pem=key, certificate_pem=other
        ) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_without_a_ca_any_leaf_comes_back_for_appraisal() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server:
        leaf = await fetch_leaf(f"127.0.0.1:{server.port}", server_name="unknown.test", timeout=5)
    assert x509.load_der_x509_certificate(leaf).public_bytes(Encoding.PEM) == mesh.server_certificate


@pytest.mark.parametrize(("own_ca", "name"), [(False, SERVER_NAME), (True, "ledger.mesh.test")], ids=["CA", "name"])
async def test_a_leaf_of_another_ca_or_name_is_refused(own_ca: bool, name: str) -> None:
    mesh = SmallMesh()
    ca_pem = mesh.ca.pem if own_ca else ThrowawayCa().pem
    async with mesh.serve() as server:
        with pytest.raises(PeerUnreachable, match="a certificate not to accept"):
            await fetch_leaf(f"127.0.0.1:{server.port}", server_name=name, timeout=5, ca_pem=ca_pem)


async def test_a_closed_port_is_named_in_the_refusal() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(PeerUnreachable, match=f"127.0.0.1:{port}") as caught:
            await fetch_leaf(f"127.0.0.1:{port}", server_name="x", timeout=5)
    assert caught.value.reason == "PEER_UNREACHABLE"


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "a" * 64 + ".test", "a\0b", "\udcff"])
async def test_a_host_that_no_resolver_takes_is_unreachable(host: str) -> None:
    with pytest.raises(PeerUnreachable, match="cannot reach"):
        await fetch_leaf(f"{host}:443", server_name="x", timeout=5)


async def test_nothing_is_reachable_at_port_0() -> None:
    with pytest.raises(PeerUnreachable, match="cannot reach"):
        await fetch_leaf("127.0.0.1:0", server_name="x", timeout=5)


@pytest.mark.parametrize("port", [-1, 65536, 70000])
async def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(AddressMalformed):
        await fetch_leaf(f"127.0.0.1:{port}", server_name="x", timeout=5)


@asynccontextmanager
async def _tls_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: ssl.SSLObject = writer.get_extra_info("ssl_object")
        writer.write((session.getpeercert() is not None).to_bytes())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_server_of_tls_1_2_is_not_a_peer(tmp_path: os.PathLike[str]) -> None:
    context = _server_context(ThrowawayCa(), tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with _tls_server(context) as port:
        with pytest.raises(PeerUnreachable):
            await fetch_leaf(f"127.0.0.1:{port}", server_name="x", timeout=5)


async def test_a_client_context_shows_its_certificate_from_memory(tmp_path: os.PathLike[str]) -> None:
    ca = ThrowawayCa()
    context = _server_context(ca, tmp_path)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca.pem.decode())
    key, certificate = ca.leaf("spiffe://mesh.test/router/1", "router.mesh.test")
    client = load_client_context(ca_pem=ca.pem, key_pem=key, certificate_pem=certificate)
    async with _tls_server(context) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=SERVER_NAME)
        assert await reader.read() == b"\x01"
        writer.close()
        await writer.wait_closed()


def _server_context(ca: ThrowawayCa, folder: os.PathLike[str]) -> ssl.SSLContext:
    key, certificate = ca.leaf("spiffe://mesh.test/kms/1", SERVER_NAME)
    path = os.path.join(folder, "server.pem")
    with open(path, "wb") as file:
        file.write(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


_HARDENED = """
from libs.rpc.hardening import ssl_hardening
ssl_hardening()
import asyncio, ssl
from libs.rpc.tls import trusting_context
from tests.fakes.small_mesh import SmallMesh

async def main():
    async with SmallMesh().serve() as server:
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context = trusting_context()
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2"])
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
                print(writer.get_extra_info("ssl_object").version())
                writer.transport.abort()
            except OSError:
                print("refused")

asyncio.run(main())
"""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    ours = ("GRPC_SSL_CIPHER_SUITES", "GRPC_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_a_hardened_server_agrees_on_tls_1_3_only_and_writes_no_line_about_who_does_not() -> None:
    ran = _python(_HARDENED)
    assert (ran.stdout.split(), ran.stderr) == (["TLSv1.3", "refused"], "")


def test_hardening_after_grpc_was_loaded_is_refused() -> None:
    late = _python("import grpc\nfrom libs.rpc.hardening import ssl_hardening\nssl_hardening()")
    assert "HardeningTooLate" in late.stderr
