"""What a router keeps for a tenant may be read as often as one may, and no oftener, whoever else reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from teemesh.inference.v1 import aci_pb2 as pb
from teemesh.inference.v1 import aci_pb2_grpc as pb_grpc

from libs.rpc.errors import STATUS_DETAILS_KEY, reason_of
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from services.router.admission.reads import AT_ONCE_SECONDS
from services.router.face.aci_servicer import AciServicer, aci_binding
from tests.fakes.https_clients import KEY, OTHER_KEY, DirectoryTwin, ReportsTwin, Site, documents_of, https_site
from tests.fakes.pki import ThrowawayCa
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt, router_bench

PER_SECOND = 0.5
AT_ONCE = int(PER_SECOND * AT_ONCE_SECONDS)
READS = ("/v1/aci/receipts/{}", "/v1/teemesh/receipts/{}/commitment", "/v1/signature/{}", "/v1/teemesh/usage")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path, reads_per_second=PER_SECOND) as running:
        yield running


async def status(site: Site, path: str, key: str | None) -> int:
    return (await site.ask("GET", path, key=key))[0].status


@pytest.mark.parametrize("path", READS)
async def test_a_tenant_that_reads_in_a_loop_is_refused_and_nobody_else_is(site: Site, path: str) -> None:
    own, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
    others, _ = await site.ask("POST", CHAT, key=OTHER_KEY, body=prompt())
    path, other_path = (path.format(response.headers["X-Receipt-Id"]) for response in (own, others))
    assert [await status(site, path, KEY) for _ in range(AT_ONCE)] == [200] * AT_ONCE
    for every in READS:
        refused, body = await site.ask("GET", every.format(own.headers["X-Receipt-Id"]), key=KEY)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "2")
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("rate_limited", "rate_limit_exceeded")
    assert await status(site, other_path, OTHER_KEY) == 200
    assert (await site.ask("POST", CHAT, key=KEY, body=prompt()))[0].status == 200
    site.directory.now += 1 / PER_SECOND
    assert [await status(site, path, KEY) for _ in range(2)] == [200, 429]


async def test_whoever_has_no_key_of_a_tenants_takes_none_of_what_it_may_read(site: Site) -> None:
    response, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
    path, asked = f"/v1/aci/receipts/{response.headers['X-Receipt-Id']}", site.directory.asked
    assert {await status(site, path, None) for _ in range(4 * AT_ONCE)} == {401}
    assert site.directory.asked == asked, "without a key nothing is looked up"
    assert {await status(site, path, "sk-wrong") for _ in range(4 * AT_ONCE)} == {404}
    assert site.directory.asked == asked + 1, "a wrong key is looked up once"
    assert await status(site, path, KEY) == 200


async def test_over_grpc_reads_are_refused_with_a_reason_and_when_to_ask_again(tmp_path: Path) -> None:
    ca = ThrowawayCa()
    key, certificate = ca.leaf(None, "localhost", ip="127.0.0.1")
    async with router_bench(tmp_path) as bench:
        documents = documents_of(bench, DirectoryTwin(), cast(Any, ReportsTwin()), PER_SECOND)
        binding = aci_binding(AciServicer(documents))
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        middleware = public_middleware(binding.methods)
        receipt_id = (await bench.run(prompt())).started.receipt_id
        async with (
            serving("127.0.0.1:0", credentials, [binding], middleware, drain_seconds=0.5) as server,
            grpc.aio.secure_channel(f"localhost:{server.port}", grpc.ssl_channel_credentials(ca.pem)) as channel,
        ):
            stub: Any = pb_grpc.AciServiceStub(channel)

            async def read() -> None:
                request, metadata = pb.GetReceiptRequest(id=receipt_id), (("authorization", f"Bearer {KEY}"),)
                await stub.GetReceipt(request, timeout=PATIENCE_SECONDS, metadata=metadata)

            for _ in range(AT_ONCE):
                await read()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await read()
    assert (refused.value.code(), reason_of(refused.value)) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TENANT_READS_EXCEEDED",
    )
    trailers = dict(refused.value.trailing_metadata() or ())
    retry = error_details_pb2.RetryInfo()
    details = status_pb2.Status.FromString(cast(bytes, trailers[STATUS_DETAILS_KEY])).details
    assert any(detail.Unpack(retry) for detail in details)
    assert retry.retry_delay.seconds == 2
