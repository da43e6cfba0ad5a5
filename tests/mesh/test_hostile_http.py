"""A real router under requests that nobody should send: each is refused clearly, and nothing is left of them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from libs.transparency import leaf as leaves
from libs.transparency.leaf import Kind
from services.cli.decisions.log_copy import copy_log
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import read_service_access
from tests.fakes.hostile_http import CHAT, Hostile, hostile_requests
from tests.mesh.https import Https
from tests.mesh.running import RunningMesh, until_serving
from tests.mesh.test_entries import PATIENCE_SECONDS, until_met

pytestmark = pytest.mark.mesh

_BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}).encode()
NAMES = list(hostile_requests("", _BODY))
ROUNDS = 20
FLOOD = 1500
GROWTH_BYTES = 48 << 20
"""What a router may take more of memory than before: caches fill, and allocators keep what they had."""


@contextmanager
def connected(mesh: RunningMesh) -> Iterator[ssl.SSLSocket]:
    described = mesh.mesh
    host = urlsplit(described["router_url"])
    context = ssl.create_default_context(cafile=described["router_ca"])
    with (
        socket.create_connection((host.hostname, host.port), timeout=PATIENCE_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host.hostname) as session,
    ):
        yield session


def refusal(mesh: RunningMesh, hostile: Hostile) -> http.client.HTTPResponse:
    """Send it on a connection of its own; return its answer, read."""
    with connected(mesh) as session:
        session.sendall(hostile.data)
        response = http.client.HTTPResponse(session)
        response.begin()
        error = json.loads(response.read())["error"]
        assert (response.status, error["type"]) == hostile.refusal
        return response


def router_pid(mesh: RunningMesh) -> int:
    return int(mesh.mesh["services"]["router"]["pid"])


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def logged(mesh: RunningMesh, https: Https) -> Counter[Kind]:
    """How many entries of each kind the log has, once the receipt of a refusal that is made now is among them."""
    receipt_id = https.post(CHAT, b"{").headers["X-Receipt-Id"]
    asked_until = time.monotonic() + PATIENCE_SECONDS
    while https.get(f"/v1/teemesh/receipts/{receipt_id}/commitment").status != 200:
        assert time.monotonic() < asked_until
    access = read_service_access(MeshReader(mesh.state / "mesh.json"), "ledger")
    copied = asyncio.run(copy_log(access, PATIENCE_SECONDS))
    return Counter(leaves.parse(leaf).kind for leaf, _ in copied.rows)


@pytest.mark.parametrize("name", NAMES)
def test_what_nobody_should_send_is_refused_clearly(mesh: RunningMesh, https: Https, name: str) -> None:
    keyset = https.get("/", authorized=False).headers["X-ACI-Keyset-Digest"]
    response = refusal(mesh, hostile_requests(mesh.mesh["api_key"], _BODY)[name])
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-ACI-Version"] == "aci/1"
    assert response.headers["X-ACI-Keyset-Digest"] == keyset


def test_a_flood_of_strangers_costs_no_memory_and_leaves_one_count_in_the_log(mesh: RunningMesh, https: Https) -> None:
    """None of them has a key. What they send is refused for what it is, or for that."""
    strangers = hostile_requests("sk-of-nobody", _BODY)

    def round_of_all() -> None:
        for hostile in strangers.values():
            with connected(mesh) as session:
                session.sendall(hostile.data)
                response = http.client.HTTPResponse(session)
                response.begin()
                response.read()
                assert response.status >= 400

    round_of_all()  # What grows once has grown.
    pid, tenants = router_pid(mesh), {kind for kind in Kind if kind.is_tenants}
    entries, before = logged(mesh, https), resident_bytes(pid)
    for _ in range(ROUNDS):
        round_of_all()
    with connected(mesh) as session:
        for _ in range(FLOOD // 2):
            session.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            response = http.client.HTTPResponse(session)
            response.begin()
            response.read()
            assert response.status == 401
    assert router_pid(mesh) == pid
    assert resident_bytes(pid) - before < GROWTH_BYTES
    after = logged(mesh, https)
    after[Kind.RECEIPT] -= 1  # Of the refusal that was waited for.
    assert {kind: after[kind] for kind in tenants} == {kind: entries[kind] for kind in tenants}
    assert after[Kind.REFUSALS] == entries[Kind.REFUSALS]
    os.kill(pid, signal.SIGTERM)
    asked_until = time.monotonic() + PATIENCE_SECONDS
    # A router that stopped before has said its own.
    while sum(sum(body["counts"].values()) for body in until_met(mesh, {Kind.REFUSALS})[Kind.REFUSALS]) < FLOOD // 2:
        assert time.monotonic() < asked_until
    until_serving(mesh)
    assert https.get("/health", authorized=False).status == 200
