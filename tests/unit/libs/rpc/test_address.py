from __future__ import annotations

import socket

import pytest

from libs.rpc.address import Address, AddressMalformed, parse_address
from libs.rpc.channel import fetch_leaf
from libs.rpc.middleware import standard_middleware
from libs.rpc.server import serving
from tests.fakes.small_mesh import SERVER_NAME, SmallMesh


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8443", "127.0.0.1", 8443),
        ("registry.mesh.local:1", "registry.mesh.local", 1),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("[2001:db8::7]:443", "2001:db8::7", 443),
        ("[::ffff:10.0.0.1]:9", "::ffff:10.0.0.1", 9),
        ("[fe80::1%eth0]:9", "fe80::1%eth0", 9),
    ],
)
def test_a_resolver_gets_the_host_without_its_brackets(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == text
    assert address.family == (socket.AF_INET6 if text.startswith("[") else socket.AF_INET)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "host", "host:", "host:x", "host:-1", "host:65536", "host:1:2", "host:123456", "host:\u0661"),
        *("::1:443", "[::1]", "[::1]443", "[::1]:1\n", "[host]:1", "[]:1", "a b:1", "host:1 ", "https://host:1"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressMalformed):
        parse_address(text)


async def test_a_server_on_ipv6_shows_its_leaf() -> None:
    mesh = SmallMesh()
    async with serving("[::1]:0", mesh.credentials(), [], standard_middleware(mesh.gate, {})) as server:
        leaf = await fetch_leaf(f"[::1]:{server.port}", server_name=SERVER_NAME, timeout=5, ca_pem=mesh.ca.pem)
    assert leaf
