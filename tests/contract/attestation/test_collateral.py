"""Collateral, on the listener without client certificates and on the mesh's."""

from __future__ import annotations

import grpc
import grpc.aio
from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs.identity.certificate import pem_of
from libs.identity.collateral import AttestationCollateral
from libs.rpc.channel import fetch_leaf, open_channel
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh
from tests.fakes.refusals import refusal
from tests.fakes.running_attestation import collateral_listener


async def test_collateral_is_served_on_the_mesh_listener_too(mesh: JoinedMesh, channel: grpc.aio.Channel) -> None:
    stub = collateral_pb2_grpc.CollateralServiceStub(channel)
    request = collateral_pb2.GetCollateralRequest(quote=mesh.tds["router"].quote(b"x"))
    assert (await stub.GetCollateral(request, timeout=10)).valid_until_ms > Clock().now * 1000


async def test_collateral_comes_without_a_certificate_and_makes_evidence_verify(mesh: JoinedMesh) -> None:
    async with collateral_listener(mesh) as address:
        clock = Clock()
        source = AttestationCollateral(address, TRUST_DOMAIN, clock)
        quote = mesh.tds["router"].quote(b"x")
        collateral = await source.collateral(quote)
        assert collateral.is_current(int(clock.now))
        clock.now += 3599
        assert await source.collateral(quote) is collateral
        clock.now += 1
        newer = await source.collateral(quote)
        assert newer is not collateral
    clock.now += 3600
    assert await source.collateral(quote) is newer  # Kept: the service is gone.
    clock.now += 40 * 86400
    assert await refusal(source.collateral(quote)) == "PEER_UNREACHABLE"


async def test_what_is_no_quote_gets_no_collateral(mesh: JoinedMesh) -> None:
    name = f"attestation-bootstrap.{TRUST_DOMAIN}"
    async with collateral_listener(mesh) as address:
        leaf = await fetch_leaf(address, server_name=name, timeout=10)
        async with open_channel(address, root_pem=pem_of(leaf), server_name=name) as channel:
            stub = collateral_pb2_grpc.CollateralServiceStub(channel)
            call = stub.GetCollateral(collateral_pb2.GetCollateralRequest(quote=b"quote"), timeout=10)
            assert await refusal(call) == "QUOTE_MALFORMED"
