"""Each call of dstack's own SDK against a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import dcap_qvl
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from dstack_sdk import AsyncDstackClient

from services.devtee.eventlog import replay
from services.devtee.guest import SocketUnavailable, serving_guest
from services.devtee.machine import Machine, VirtualTd
from services.devtee.methods import GuestMethods
from services.devtee.tls import ATTESTATION_EXTENSION, ra_tls_report_data


async def post(socket_path: Path, method: str, body: Any) -> httpx.Response:
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket_path)), base_url="http://guest", timeout=30
    ) as client:
        return await client.post(f"/{method}", content=body if isinstance(body, bytes) else json.dumps(body).encode())


async def test_info_states_what_the_td_measured(guest: AsyncDstackClient, machine: Machine, td: VirtualTd) -> None:
    info = await guest.info()
    assert info.app_id == td.identity.app_id.hex()
    assert info.instance_id == td.identity.instance_id.hex()
    assert info.app_name == "node"
    assert info.device_id == machine.device_id.hex()
    assert info.compose_hash == sha256(info.tcb_info.app_compose.encode()).hexdigest()
    assert info.os_image_hash == json.loads(info.vm_config)["os_image_hash"]
    assert info.tcb_info.rtmr3 == td.rtmrs[3].hex()
    provider = json.loads(info.key_provider_info)
    kms_root = x509.load_der_x509_certificate(machine.kms.ca.der).public_key()
    assert provider["name"] == "kms"
    assert isinstance(kms_root, ec.EllipticCurvePublicKey)
    assert await guest.is_reachable()


async def test_a_quotes_log_replays_to_the_quote_even_in_the_sdk(guest: AsyncDstackClient) -> None:
    answer = await guest.get_quote(b"\x01" * 64)
    report: Any = dcap_qvl.parse_quote(answer.decode_quote()).report
    replayed = answer.replay_rtmrs()
    assert replayed[0] == bytes(report.rt_mr0).hex()
    assert replayed[1] == bytes(report.rt_mr1).hex()
    assert replayed[2] == bytes(report.rt_mr2).hex()
    assert replayed[3] == bytes(report.rt_mr3).hex()
    assert bytes(report.report_data) == b"\x01" * 64


async def test_short_report_data_is_padded(guest: AsyncDstackClient) -> None:
    answer = await guest.get_quote("ab")
    assert bytes.fromhex(answer.report_data) == b"ab".ljust(64, b"\0")


async def test_attest_answers_a_scale_blob(guest: AsyncDstackClient) -> None:
    blob = (await guest.attest(b"abc")).decode_attestation()
    assert blob[:2] == b"\0\0"
    assert blob[4 + 568 : 4 + 571] == b"abc"


async def test_an_emitted_event_is_in_the_next_quote(guest: AsyncDstackClient, td: VirtualTd) -> None:
    await guest.emit_event("mine", "payload")
    answer = await guest.get_quote(b"x")
    last = answer.decode_event_log()[-1]
    assert (last.event, bytes.fromhex(last.event_payload)) == ("mine", b"payload")
    report: Any = dcap_qvl.parse_quote(answer.decode_quote()).report
    assert bytes(report.rt_mr3) == replay(td.events, 3)


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
async def test_a_key_is_the_same_each_time(guest: AsyncDstackClient, algorithm: str) -> None:
    first = await guest.get_key("path", "purpose", algorithm)
    second = await guest.get_key("path", "other", algorithm)
    assert first.decode_key() == second.decode_key()
    assert [len(link) for link in first.decode_signature_chain()] == [65, 65]


@pytest.mark.parametrize("algorithm", ["secp256k1", "secp256k1_prehashed", "ed25519"])
async def test_a_signature_verifies_and_another_messages_does_not(guest: AsyncDstackClient, algorithm: str) -> None:
    message, other = b"m" * 32, b"n" * 32
    signed = await guest.sign(algorithm, message)
    signature, public_key = signed.decode_signature(), signed.decode_public_key()
    assert len(signature) == 64
    assert signed.decode_signature_chain()[0] == signature
    assert len(signed.signature_chain) == 3
    assert (await guest.verify(algorithm, message, signature, public_key)).valid
    assert not (await guest.verify(algorithm, other, signature, public_key)).valid


async def test_a_tls_keys_chain_ends_at_the_kms(guest: AsyncDstackClient, machine: Machine) -> None:
    answer = await guest.get_tls_key(
        "node.example", ["node.example", "127.0.0.1"], usage_client_auth=True, not_after=1_790_003_600
    )
    leaf, ca, root = (x509.load_pem_x509_certificate(pem.encode()) for pem in answer.certificate_chain)
    leaf.verify_directly_issued_by(ca)
    ca.verify_directly_issued_by(root)
    assert root == machine.kms.ca.certificate
    assert load_pem_private_key(answer.key.encode(), None).public_key() == leaf.public_key()
    assert leaf.not_valid_after_utc.timestamp() == 1_790_003_600
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node.example"]
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_oid(ATTESTATION_EXTENSION)


async def test_an_ra_tls_certificate_carries_a_quote_over_its_key(guest: AsyncDstackClient) -> None:
    answer = await guest.get_tls_key("node.example", usage_ra_tls=True)
    leaf = x509.load_pem_x509_certificate(answer.certificate_chain[0].encode())
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    extension = leaf.extensions.get_extension_for_oid(ATTESTATION_EXTENSION).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    assert ra_tls_report_data(key) in extension.value


async def test_version_answers(guest: AsyncDstackClient) -> None:
    assert (await guest.version()).version.startswith("0.5.")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("GetKey", {"path": "p", "algorithm": "rsa"}),
        ("GetKey", {"path": 7}),
        ("GetKey", b"not json"),
        ("GetQuote", {"report_data": ""}),
        ("GetQuote", {"report_data": "00" * 65}),
        ("GetQuote", {"report_data": "zz"}),
        ("EmitEvent", {"event": "a:b", "payload": ""}),
        ("Sign", {"algorithm": "", "data": "00"}),
        ("Sign", {"algorithm": "secp256k1_prehashed", "data": "00"}),
        ("Verify", {"algorithm": "ed25519", "data": "00", "signature": "00", "public_key": "00"}),
        ("Verify", {"algorithm": "secp256k1", "data": "00", "signature": "00" * 64, "public_key": "00"}),
        ("GetTlsKey", {"subject": "x", "with_app_info": True}),
        ("GetTlsKey", {"subject": "x", "not_after": 1}),
        ("GetTlsKey", {"subject": "x", "alt_names": "x"}),
        ("GetTlsKey", {"subject": "x", "alt_names": ["é"]}),
        ("GetTlsKey", {"subject": "x" * 1000}),
        ("GetTlsKey", {"subject": "x", "not_after": 2**52}),
    ],
)
async def test_a_bad_request_is_a_400_that_says_why(
    guest: AsyncDstackClient, socket_path: Path, method: str, body: Any
) -> None:
    response = await post(socket_path, method, body)
    assert response.status_code == 400
    assert response.json()["error"]


async def test_an_unknown_method_is_a_404(guest: AsyncDstackClient, socket_path: Path) -> None:
    response = await post(socket_path, "GetRoot", {})
    assert (response.status_code, response.json()) == (404, {"error": "Service not found: GetRoot"})


async def test_calls_at_once_all_answer(guest: AsyncDstackClient) -> None:
    answers = await asyncio.gather(*(guest.get_quote(bytes([value])) for value in range(8)))
    assert len({answer.report_data for answer in answers}) == 8


async def test_only_the_owner_may_open_the_socket_and_it_goes_with_the_service(
    td: VirtualTd, socket_path: Path, now: int
) -> None:
    async with serving_guest(socket_path, GuestMethods(td, lambda: now)):
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600
    with pytest.raises(FileNotFoundError):
        os.stat(socket_path)


async def test_a_killed_predecessors_socket_is_replaced(td: VirtualTd, socket_path: Path, now: int) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(socket_path))
    async with (
        serving_guest(socket_path, GuestMethods(td, lambda: now)),
        AsyncDstackClient(str(socket_path), timeout=30) as client,
    ):
        assert await client.is_reachable()


async def test_a_socket_that_someone_answers_on_is_not_taken(
    guest: AsyncDstackClient, td: VirtualTd, socket_path: Path, now: int
) -> None:
    with pytest.raises(SocketUnavailable, match="another process"):
        async with serving_guest(socket_path, GuestMethods(td, lambda: now)):
            pass
    assert await guest.is_reachable()


@pytest.fixture
def file_in_the_way(socket_path: Path) -> Iterator[Path]:
    socket_path.write_text("mine")
    yield socket_path
    assert socket_path.read_text() == "mine"


async def test_a_file_in_the_sockets_place_is_left_alone(td: VirtualTd, file_in_the_way: Path, now: int) -> None:
    with pytest.raises(SocketUnavailable, match="not a socket"):
        async with serving_guest(file_in_the_way, GuestMethods(td, lambda: now)):
            pass


async def test_a_path_too_long_for_a_socket_is_refused(td: VirtualTd, socket_path: Path, now: int) -> None:
    with pytest.raises(SocketUnavailable, match="cannot bind"):
        async with serving_guest(socket_path.parent / ("x" * 120), GuestMethods(td, lambda: now)):
            pass
