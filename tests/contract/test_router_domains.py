"""A router of several domains: a key of its own for each, shown by name over HTTPS and gRPC, attested for that name."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.aci.encoding import digest
from libs.aci.keyset import TlsKey
from libs.client.attestation import Attested, TlsKeyNotAttested, verify_channel, verify_report
from libs.client.exchange import chat_body
from libs.client.pinning import ServerKeyRefused, client_context, spki_sha256
from libs.client.session import Patience, open_session
from libs.errors import MeshError
from libs.rpc.channel import CertificateRefused, fetch_leaf
from libs.rpc.health import Health
from libs.rpc.tls import load_client_context, trusting_context
from services.router.workload.outward import Outward
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import OtherRouter, last_receipt, other_router
from tests.fakes.https_clients import KEY
from tests.fakes.leases import MODEL
from tests.fakes.nodes import STREAMED
from tests.fakes.raw_http2 import get, raw_http2
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt
from tests.mesh.aci import reader as aci

A, B = "a.example", "b.example"
QUICK = Patience(settle=0.1, between=0.01, silence=10.0, total=30.0)


class Exchanged(Outward):
    """Has keysets list each domain's key for the other."""

    @property
    def listed(self) -> tuple[TlsKey, ...]:
        first, second = super().listed
        return replace(first, domain=second.domain), replace(second, domain=first.domain)


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture
async def router(mesh: AttestedMesh, tmp_path: Path) -> AsyncIterator[OtherRouter]:
    async with other_router(tmp_path, mesh, outward=Outward(("localhost",), ("127.0.0.1",), (A, B))) as router:
        yield router


@asynccontextmanager
async def grpc_door(outward: Outward) -> AsyncIterator[int]:
    """A gRPC listener with a router's credentials."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Health([]), server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", outward.credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def leaf(router: OtherRouter, name: str, port: int | None = None) -> bytes:
    """The certificate that whoever asks for a name is shown; it is the mesh CA's, for that name."""
    target = f"127.0.0.1:{port or router.port}"
    return await fetch_leaf(target, server_name=name, timeout=10, ca_pem=router.mesh.ca.pem)


def pinned(router: OtherRouter, name: str) -> str:
    """The key that the keyset lists for a host name and no other."""
    (key,) = (key for key in router.bench.workload.keyset.tls_public_keys if key.domain == name)
    return key.spki_sha256


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(router: OtherRouter, name: str, context: ssl.SSLContext | None = None) -> AsyncIterator[Stream]:
    """A connection to a host, as its name says."""
    tls = context or load_client_context(ca_pem=router.mesh.ca.pem)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port, ssl=tls, server_hostname=name)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(stream: Stream, host: str, target: str = "/health") -> bytes:
    """Ask a host over a connection that is kept."""
    head, body = await say(stream, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert head.startswith(b"http/1.1 200 ")
    return body


async def say(stream: Stream, request: str) -> tuple[bytes, bytes]:
    """The head of what is answered, in lower case, and the body."""
    reader, writer = stream
    writer.write(request.encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return head, await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))


async def attested_by(router: OtherRouter, name: str) -> tuple[Attested, str]:
    """What a report proves that was fetched from this host, and the key that it came over."""
    seen, nonce = set[str](), secrets.token_hex(32)

    def take_note(key: str) -> bool:
        seen.add(key)
        return True

    async with connected(router, name, client_context(router.mesh.ca.pem, take_note)) as stream:
        report = await ask(stream, name, f"/v1/aci/attestation?nonce={nonce}")
    (key,) = seen
    return verify_report(report, nonce, router.mesh.policy(), int(time.time())), key


async def test_each_domain_is_shown_a_certificate_over_its_own_key_and_the_keyset_lists_it(router: OtherRouter) -> None:
    outward = router.bench.outward
    async with grpc_door(outward) as grpc_port:
        for port in (router.port, grpc_port):
            shown = {name: await leaf(router, name, port) for name in (A, B, "localhost", "127.0.0.1", A.upper())}
            assert shown["localhost"] == shown["127.0.0.1"]
            assert shown[A.upper()] == shown[A]
            keys = [spki_sha256(shown[name]) for name in ("localhost", A, B)]
            assert len(set(keys)) == 3
            assert outward.listed == (TlsKey(keys[0]), TlsKey(keys[1], A), TlsKey(keys[2], B))
            for name in (A, B):
                certificate = x509.load_der_x509_certificate(shown[name])
                names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                assert list(names) == [x509.DNSName(name)]
    workload = router.bench.workload
    assert workload.keyset.tls_public_keys == outward.listed == workload.bear().keyset.tls_public_keys
    assert workload.keyset.pins(A) == {keys[0], keys[1]}
    async with connected(router, A) as stream:
        stated = json.loads(await ask(stream, A, "/v1/aci/attestation"))["attestation"]["evidence"]
    custody = {key["spki_sha256"] for key in stated["key_custody"]["keys"] if key["role"] == "tls"}
    assert custody == set(keys)


async def test_a_host_that_is_none_of_the_operators_is_refused_inside_the_handshake(router: OtherRouter) -> None:
    for name in ("c.example", f"x.{A}", "127.0.0.1.example"):
        with pytest.raises(OSError):  # noqa: PT011  # Cut off in the middle of the handshake, one way or another.
            async with connected(router, name, trusting_context()):
                pass
    async with grpc_door(router.bench.outward) as port:
        with pytest.raises(CertificateRefused):
            await leaf(router, "c.example", port)
    async with connected(router, A) as stream:
        assert await ask(stream, A) == b'{"status": "ok"}'


async def test_without_a_key_for_all_names_whoever_names_no_domain_is_shown_none(
    mesh: AttestedMesh, tmp_path: Path
) -> None:
    outward = Outward((), (), (A, B))
    async with other_router(tmp_path, mesh, outward=outward) as router, grpc_door(outward) as port:
        for name in ("127.0.0.1", "localhost"):
            with pytest.raises(OSError):  # noqa: PT011  # Cut off in the middle of the handshake, one way or another.
                async with connected(router, name, trusting_context()):
                    pass
        listed = {key.spki_sha256 for key in outward.listed}
        assert {spki_sha256(await leaf(router, name, port)) for name in (A, B)} == listed
        for name in ("127.0.0.1", "c.example"):
            shown = await fetch_leaf(f"127.0.0.1:{port}", server_name=name, timeout=10)
            assert spki_sha256(shown) not in listed
            with pytest.raises(CertificateRefused):
                await leaf(router, name, port)
        assert router.bench.workload.keyset.pins("127.0.0.1") == frozenset()


async def test_a_client_verifies_the_key_of_the_domain_that_it_connected_to_and_no_others(
    mesh: AttestedMesh, tmp_path: Path
) -> None:
    async with other_router(tmp_path, mesh, outward=Outward((), (), (A, B))) as router:
        (attested, key_of_a), (attested_there, key_of_b) = await attested_by(router, A), await attested_by(router, B)
        assert (key_of_a, key_of_b) == (pinned(router, A), pinned(router, B))
        verify_channel(attested, A, key_of_a)
        verify_channel(attested_there, B, key_of_b)
        # A report is for clients of the host that it was asked of.
        for name, key in ((A, key_of_b), (B, key_of_a), (B, key_of_b), ("localhost", key_of_a)):
            with pytest.raises(TlsKeyNotAttested):
                verify_channel(attested, name, key)
        with pytest.raises(ServerKeyRefused):
            async with connected(router, A, client_context(mesh.ca.pem, attested_there.pins(B).__contains__)):
                pass
        async with connected(router, A, client_context(mesh.ca.pem, attested.pins(A).__contains__)) as stream:
            await ask(stream, A)


@pytest.mark.parametrize("outward", [Outward, Exchanged])
async def test_a_session_with_a_domain_is_one_with_its_key(
    mesh: AttestedMesh, tmp_path: Path, outward: type[Outward]
) -> None:
    async with other_router(tmp_path, mesh, outward=outward((), (), ("localhost", B))) as router:
        opening = open_session(f"https://localhost:{router.port}", KEY, mesh.trust(), patience=QUICK)
        if outward is Exchanged:
            with pytest.raises(TlsKeyNotAttested):
                await opening.__aenter__()
            assert router.bench.nodes[0].requests == []
            return
        async with opening as session:
            async with session.chat(chat_body(MODEL, [{"role": "user", "content": "say hello"}])) as answer:
                _ = [piece async for piece in answer]
            assert [check.reason for check in (await session.verify(answer.exchange))[:6]] == [None] * 6


async def test_new_certificates_are_shown_to_who_connects_and_cut_off_nobody(router: OtherRouter) -> None:
    node, outward, member = router.bench.nodes[0], router.bench.outward, cast(Any, router.member)
    node.stream(*STREAMED)
    node.waits_at = 1
    h2 = load_client_context(ca_pem=router.mesh.ca.pem)
    h2.set_alpn_protocols(["h2"])
    trusting = grpc.ssl_channel_credentials(router.mesh.ca.pem)
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_door(outward) as grpc_port,
        grpc.aio.secure_channel(
            f"127.0.0.1:{grpc_port}", trusting, options=(("grpc.ssl_target_name_override", A),)
        ) as channel,
        raw_http2(router.port, h2, name=B) as http2,
        connected(router, A) as kept,
        connected(router, B) as (reader, writer),
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[no-untyped-call]
        await watching.read()
        await ask(kept, A)
        http2.ask(1, get(authority=B))
        assert (await http2.answer(1)).headers[":status"] == "200"
        body = prompt(stream=True)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: {B}\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await node.waiting.wait()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")

        doors = [(name, port) for name in (A, B, "localhost") for port in (router.port, grpc_port)]
        before = [await leaf(router, *door) for door in doors]
        await outward.certify(member)
        after = [await leaf(router, *door) for door in doors]
        assert before[::2] == before[1::2]
        assert after[::2] == after[1::2]
        assert set(before).isdisjoint(after)
        assert [spki_sha256(each) for each in before] == [spki_sha256(each) for each in after]

        await ask(kept, A)
        http2.ask(3, get(authority=B))
        assert (await http2.answer(3)).headers[":status"] == "200"
        assert not watching.done(), "the gRPC stream was cut"
        node.go_on.set()
        answer = await reader.read()
        assert answer.endswith(b"\r\n0\r\n\r\n")
        assert all(chunk in answer for chunk in STREAMED)
    receipt = last_receipt(router.bench, router.bench.workload.keyset)
    assert receipt.returned.body_hash == digest(b"".join(STREAMED))


async def test_a_clients_report_of_before_aci_names_the_key_of_the_host_that_it_asks(router: OtherRouter) -> None:
    for name, host in ((A, A), (B, f"{B}:{router.port}"), ("localhost", "localhost")):
        async with connected(router, name) as stream:
            said = json.loads(await ask(stream, host, "/v1/attestation/report?version=2"))
        assert said["tls_cert_fingerprint"] == spki_sha256(await leaf(router, name))


async def test_a_report_names_the_one_key_that_clients_of_its_host_pin(router: OtherRouter) -> None:
    """As a verifier reads it that shares no code with the router (ACI section 4.2)."""
    nonce = secrets.token_hex(32)
    h2 = load_client_context(ca_pem=router.mesh.ca.pem)
    h2.set_alpn_protocols(["h2"])

    async def reported(name: str, target: str) -> None:
        async with connected(router, name) as stream, raw_http2(router.port, h2, name=name) as http2:
            http2.ask(1, get(target, authority=f"{name}:{router.port}"))
            for said in (await ask(stream, name.upper(), target), (await http2.answer(1)).body):
                shown = spki_sha256(await leaf(router, name))
                assert aci.pinned_keys(json.loads(said)["attestation"], name) == {shown}

    # All at once, and with one nonce: none of them is told what another asked for.
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for name in (A, B, "localhost", "127.0.0.1"):
            for query in ("", f"?nonce={nonce}"):
                tasks.create_task(reported(name, f"/v1/aci/attestation{query}"))


async def test_a_request_for_another_host_than_the_connections_is_misdirected(router: OtherRouter) -> None:
    h2 = load_client_context(ca_pem=router.mesh.ca.pem)
    h2.set_alpn_protocols(["h2"])
    keyset = router.bench.workload.keyset.digest
    crossed = [(A, B), (A, "localhost"), (B, "127.0.0.1"), ("localhost", A), ("127.0.0.1", B)]
    for name, host in [*crossed, (A, "c.example"), (A, f"x.{A}"), ("localhost", "c.example"), ("127.0.0.1", "::1")]:
        written = f"[{host}]" if ":" in host else host
        body = prompt()
        asked = (
            f"GET /v1/aci/attestation HTTP/1.1\r\nHost: {written}\r\n\r\n",
            f"GET https://{written}/health HTTP/1.1\r\nHost: {written}\r\n\r\n",
            f"OPTIONS {CHAT} HTTP/1.1\r\nHost: {written}\r\nOrigin: https://chat.example\r\n"
            "Access-Control-Request-Method: POST\r\n\r\n",
            f"POST {CHAT} HTTP/1.1\r\nHost: {written}\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body.decode()}",
        )
        async with connected(router, name) as stream:
            for request in asked:
                head, said = await say(stream, request)
                assert head.startswith(b"http/1.1 421 ")
                assert b"x-aci-version: aci/1\r\n" in head
                assert f"x-aci-keyset-digest: {keyset}\r\n".encode() in head
                assert json.loads(said)["error"]["type"] == "misdirected_request"
        async with raw_http2(router.port, h2, name=name) as http2:
            http2.ask(1, get("/v1/aci/attestation", authority=written))
            answer = await http2.answer(1)
            assert answer.refusal == (421, "misdirected_request")
            assert answer.headers["x-aci-keyset-digest"] == keyset
    async with connected(router, A) as stream:
        assert (await say(stream, "GET /health HTTP/1.0\r\n\r\n"))[0].startswith(b"http/1.0 421 ")
    assert router.bench.nodes[0].requests == []


async def test_a_dot_at_the_end_of_a_host_is_no_part_of_its_name(router: OtherRouter) -> None:
    async with connected(router, A) as stream:
        assert await ask(stream, f"{A}.:{router.port}") == b'{"status": "ok"}'


async def test_without_domains_a_request_may_be_for_any_host_and_reports_name_no_key(
    mesh: AttestedMesh, tmp_path: Path
) -> None:
    async with (
        other_router(tmp_path, mesh, outward=Outward(("localhost",), ("127.0.0.1",))) as router,
        connected(router, "localhost") as stream,
    ):
        for host in ("localhost", "c.example"):
            stated = json.loads(await ask(stream, host, "/v1/aci/attestation"))["attestation"]
            assert "downstream_tls_binding" not in stated["evidence"]
            assert aci.pinned_keys(stated, host) == {spki_sha256(await leaf(router, "localhost"))}
        head, _ = await say(stream, "GET /health HTTP/1.0\r\n\r\n")
        assert head.startswith(b"http/1.0 200 ")


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"domain": "localhost"}, "DOWNSTREAM_BINDING_MALFORMED"),
        ({"domain": 1, "spki_sha256": "00" * 32}, "DOWNSTREAM_BINDING_MALFORMED"),
        ("localhost", "DOWNSTREAM_BINDING_MALFORMED"),
        ({"domain": "localhost", "spki_sha256": "00" * 32}, "TLS_KEY_NOT_ATTESTED"),
        ({"domain": "localhost", "spki_sha256": B}, "TLS_KEY_NOT_ATTESTED"),
        ({"domain": B, "spki_sha256": "localhost"}, "TLS_KEY_NOT_ATTESTED"),
        ({"domain": B, "spki_sha256": B}, "TLS_KEY_NOT_ATTESTED"),
    ],
)
async def test_a_client_goes_on_with_no_report_that_names_a_key_which_is_not_its_hosts(
    mesh: AttestedMesh, tmp_path: Path, named: Any, reason: str
) -> None:
    async with other_router(tmp_path, mesh, outward=Outward((), (), ("localhost", B))) as router:

        def lie(report: bytes) -> bytes:
            said = json.loads(report)
            said["attestation"]["evidence"]["downstream_tls_binding"] = named
            if isinstance(named, dict) and named.get("spki_sha256") in ("localhost", B):
                key = pinned(router, named["spki_sha256"])
                said["attestation"]["evidence"]["downstream_tls_binding"] = {**named, "spki_sha256": key}
            return json.dumps(said).encode()

        router.lies["attestation"] = lie
        with pytest.raises(MeshError) as refused:
            await open_session(f"https://localhost:{router.port}", KEY, mesh.trust(), patience=QUICK).__aenter__()
        assert refused.value.reason == reason
