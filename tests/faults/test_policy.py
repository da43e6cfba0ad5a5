"""A measurement that policy no longer has, or one operator revoked, is refused by everyone, with a receipt; the next
policy lets it in again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs import jcs
from libs.policy.revocation import parse_revocation
from libs.policy.signatures import parse_signed
from libs.rpc.channel import open_channel
from libs.transparency.leaf import Kind
from tests.faults.load import Client, Reply
from tests.faults.log import LogReader
from tests.faults.patience import until
from tests.mesh.operating import publish
from tests.mesh.running import RunningMesh, teemesh

pytestmark = pytest.mark.mesh

_POLICY_SECONDS = 60
_MANY_TOKENS = 1500
"""More than the model makes in the time that a revocation takes."""


async def _until(client: Client, status: int, error_type: str | None) -> Reply:
    reply = Reply(stream=False)

    async def is_so() -> bool:
        nonlocal reply
        reply = await client.reply(client.body(1, stream=False))
        return (reply.status, reply.error_type) == (status, error_type)

    async with asyncio.timeout(_POLICY_SECONDS):
        await until(is_so, poll_seconds=0.5)
    return reply


@pytest.mark.timeout(180)
async def test_a_node_without_its_measurement_is_refused_until_the_next_policy(
    mesh: RunningMesh, client: Client, tmp_path: Path
) -> None:
    await _until(client, 200, None)
    before = mesh.mesh["services"]
    roles = jcs.loads_object(mesh.file("policy"))["policy"]["roles"]
    publish(mesh, {"roles": roles | {"node": roles["node"] | {"measurements": []}}}, tmp_path)
    refused, receipt = await _refused_for(client, "MEASUREMENT_NOT_ALLOWED")
    (returned,) = [event for event in receipt["event_log"] if event["type"] == "response.returned"]
    assert returned["body_hash"] == f"sha256:{refused.sha256}"
    # mesh.json follows the policy in force within moments, and the successor must follow that one.
    async with asyncio.timeout(_POLICY_SECONDS):
        await until(lambda: _describes_version(mesh, 2))
    publish(mesh, {"roles": roles}, tmp_path)
    await _until(client, 200, None)
    # The node itself is let in again too: it renews its lease, which else would end in a moment.
    restored = await _lease_until(mesh)
    async with asyncio.timeout(_POLICY_SECONDS):
        await until(lambda: _is_renewed(mesh, restored))
    assert mesh.mesh["services"] == before


def revoke(mesh: RunningMesh, kind: str, value: str) -> None:
    """Revoke something as one of three operators."""
    key = mesh.state / "operators" / "operator-2.pem"
    described = ("--mesh", str(mesh.state / "mesh.json"))
    done = teemesh("policy", "revoke", kind, value, "--reason", "a test", "--operator-key", str(key), *described)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(180)
async def test_a_live_stream_dies_with_the_reason_when_one_operator_revokes_its_node(
    mesh: RunningMesh, client: Client, reader: LogReader, tmp_path: Path
) -> None:
    await _until(client, 200, None)
    before = mesh.mesh["services"]
    (measurement,) = parse_signed(mesh.file("policy")).policy.roles["node"].measurements
    endless = jcs.loads_object(client.body(1, stream=True, max_tokens=_MANY_TOKENS)) | {"ignore_eos": True}
    reply = Reply(stream=True)
    stream = asyncio.create_task(client.follow(jcs.dumps(endless), reply))
    async with asyncio.timeout(_POLICY_SECONDS):
        await reply.begun.wait()
        await asyncio.to_thread(revoke, mesh, "measurement", measurement.compose_hash)
        await stream
    assert (reply.error_type, reply.is_answer) == ("upstream_error", False)
    assert b"MEASUREMENT_REVOKED" in reply.body
    await _refused_for(client, "MEASUREMENT_REVOKED")
    (revoked,) = [entry.entry.body for entry in (await reader.read()).of(Kind.REVOCATION)]
    assert revoked["revocation"]["value"] == measurement.compose_hash
    listed = teemesh("policy", "revocations", "--mesh", str(mesh.state / "mesh.json"))
    assert f"measurement {measurement.compose_hash}: in force" in listed.stdout
    publish(mesh, {"lifted_revocations": [parse_revocation(jcs.dumps(revoked)).revocation.id.hex()]}, tmp_path)
    await _until(client, 200, None)
    assert mesh.mesh["services"] == before


async def _is_renewed(mesh: RunningMesh, before: int) -> bool:
    return await _lease_until(mesh) > before


async def _lease_until(mesh: RunningMesh) -> int:
    """Until when the registry lists the node, in milliseconds; 0 when it does not."""
    async with open_channel(
        mesh.mesh["registry_grpc"][0],
        root_pem=mesh.file("mesh_ca"),
        server_name=f"registry.{mesh.mesh['trust_domain']}",
        key_pem=mesh.file("operator_key"),
        certificate_pem=mesh.file("operator_cert"),
    ) as channel:
        stub = registry_pb2_grpc.ProviderRegistryServiceStub(channel)
        listed = await stub.ListProviders(registry_pb2.ListProvidersRequest(), timeout=10)
    return max((provider.lease_until_ms for provider in listed.providers), default=0)


async def _refused_for(client: Client, reason: str) -> tuple[Reply, dict[str, Any]]:
    """Ask until the refusal's receipt gives this reason: whoever hears of a policy first may refuse for another."""
    reply, receipt = Reply(stream=False), dict[str, Any]()

    async def is_so() -> bool:
        nonlocal reply, receipt
        reply = await _until(client, 503, "upstream_verification_failed")
        found = await client.get(f"/v1/aci/receipts/{reply.receipt_id}")
        assert found.status == 200
        receipt = found.json
        (outcome,) = [event for event in receipt["event_log"] if event["type"] == "upstream.verified"]
        assert outcome["result"] == "failed"
        return bool(outcome["reason"] == reason)

    async with asyncio.timeout(_POLICY_SECONDS):
        await until(is_so, poll_seconds=0.5)
    return reply, receipt


async def _describes_version(mesh: RunningMesh, version: int) -> bool:
    return parse_signed(mesh.file("policy")).policy.version == version
