"""What a router lists: the same over both of its faces, and all that it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from teemesh.inference.v1 import inference_pb2 as pb

from libs.aci.endpoints import CHAT
from services.router.face.arrivals import Arrival, Fields
from tests.fakes.foreign_routers import HERE, asked
from tests.fakes.grpc_clients import AUTHORIZED, grpc_line
from tests.fakes.https_clients import KEY, DirectoryTwin, ReportsTwin, documents_of
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench


async def nothing(limit: int, tenant_id: str) -> bytes:
    return b""


async def test_both_faces_list_what_a_provider_serves_and_serve_it(tmp_path: Path, router: RouterBench) -> None:
    fields = Fields([("authorization", f"Bearer {KEY}")])
    arrival = Arrival("GET", "/v1/models", Fields([]), fields, nothing, lambda: False)
    reply = await documents_of(router, DirectoryTwin(), cast(Any, ReportsTwin())).models(arrival, "")
    over_https = {model["id"]: model["endpoints"] for model in json.loads(cast(bytes, reply.body))["data"]}
    async with grpc_line(tmp_path, bench=router) as line:
        listed = await line.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS, metadata=AUTHORIZED)
        parts = await line.parts(body=asked(), endpoint=CHAT.path)
    assert {model.id: list(model.endpoints) for model in listed.models} == over_https
    assert [(model.id, model.weights_sha256) for model in listed.models] == [(HERE, b"")]
    assert CHAT.path in over_https[HERE]
    assert parts[0].head.status == 200
