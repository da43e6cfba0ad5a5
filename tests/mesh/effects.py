"""What a fault did to a request: what its client was told, its one receipt, and that receipt's place in the log."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from libs.transparency.leaf import Kind
from tests.faults.load import Client, Completion, Reply
from tests.faults.log import log_reader
from tests.faults.proof import Prover
from tests.mesh.running import RunningMesh


async def verified_receipt(mesh: RunningMesh, client: Client, request: bytes, reply: Reply, folder: Path) -> Any:
    """Return the events of a request's receipt by type, once it is proven and found to be the only one.

    `folder` takes the state of whoever reads the log.
    """
    assert reply.ended, reply.trouble
    digest = hashlib.sha256(request).hexdigest()
    await Prover(client, mesh.mesh).prove(Completion(0, reply.receipt_id, digest, reply.sha256, time.time()))
    async with log_reader(mesh, folder, own_only=True) as reader:
        log = await reader.read()
    of_request = [
        logged.entry.body["receipt_id"]
        for logged in log.of(Kind.RECEIPT)
        if any(event.get("body_hash") == f"sha256:{digest}" for event in logged.entry.body["event_log"])
    ]
    assert of_request == [reply.receipt_id]
    document = json.loads((await client.get(f"/v1/aci/receipts/{reply.receipt_id}")).body)
    return {event["type"]: event for event in document["event_log"]}
