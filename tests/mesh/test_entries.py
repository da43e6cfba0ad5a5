"""What services write into the log of a real mesh is what docs/entries.md describes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Set
from typing import Any

import pytest

from libs import jcs
from libs.aci import report as reports_of
from libs.events.records import SALT_SIZE
from libs.transparency import leaf as leaves
from libs.transparency.leaf import Kind
from services.cli.decisions.log_copy import copy_log
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import read_service_access
from tests.fakes.entry_schema import require_documented_entry
from tests.mesh.https import Https
from tests.mesh.running import RunningMesh, until_serving

PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.mesh

OF_EVERY_START = {Kind.KEYSET, Kind.SESSION, Kind.POLICY, Kind.KEY_DECISION, Kind.ADMISSION, Kind.START}


def public_entries(mesh: RunningMesh) -> dict[Kind, list[dict[str, Any]]]:
    """The bodies of the public entries up to the newest checkpoint by kind, each entry held against the schema."""
    access = read_service_access(MeshReader(mesh.state / "mesh.json"), "ledger")
    copied = asyncio.run(copy_log(access, PATIENCE_SECONDS))
    met = defaultdict(list)
    for leaf, body in copied.rows:
        if body is not None:
            kind = require_documented_entry(body[SALT_SIZE:])
            assert kind is leaves.parse(leaf).kind
            met[kind].append(jcs.loads_object(body[SALT_SIZE:])["body"])
    return met


def until_met(mesh: RunningMesh, kinds: Set[Kind]) -> dict[Kind, list[dict[str, Any]]]:
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while not (met := public_entries(mesh)).keys() >= kinds:
        assert time.monotonic() < ends_at, met.keys()
    return met


def test_every_public_entry_is_documented(mesh: RunningMesh) -> None:
    until_met(mesh, OF_EVERY_START)


def test_the_log_has_the_keyset_that_receipts_name_and_the_report_that_binds_it(
    mesh: RunningMesh, https: Https
) -> None:
    served = https.get("/v1/aci/attestation", authorized=False).headers["X-ACI-Keyset-Digest"]
    reports = [body["report"] for body in until_met(mesh, OF_EVERY_START)[Kind.KEYSET] if body["report"] is not None]
    (logged,) = [reports_of.parse(jcs.dumps(report)) for report in reports]
    assert logged.keyset.digest == logged.keyset_digest == served
    assert logged.report_data == reports_of.report_data(served, None)


def test_a_router_that_stops_has_the_log_say_how_many_it_did_not_let_in(mesh: RunningMesh, https: Https) -> None:
    for _ in range(3):
        assert https.get("/v1/models", authorized=False).status == 401
    os.kill(mesh.mesh["services"]["router"]["pid"], signal.SIGTERM)
    said = until_met(mesh, {Kind.REFUSALS})[Kind.REFUSALS]
    assert sum(body["counts"]["API_KEY_INVALID"] for body in said) >= 3
    until_serving(mesh)


def test_a_router_that_stops_has_the_log_say_what_a_tenant_used(mesh: RunningMesh, https: Https) -> None:
    assert https.post("/v1/chat/completions", b"{}").status == 400
    os.kill(mesh.mesh["services"]["router"]["pid"], signal.SIGTERM)
    access = read_service_access(MeshReader(mesh.state / "mesh.json"), "ledger")
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while Kind.USAGE not in {leaves.parse(row).kind for row, _ in asyncio.run(copy_log(access, PATIENCE_SECONDS)).rows}:
        assert time.monotonic() < ends_at
    until_serving(mesh)
    entries = https.get("/v1/teemesh/usage").json["entries"]
    assert sum(row["refused"] for entry in entries for row in entry["rows"]) >= 1
