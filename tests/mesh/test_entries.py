"""What services write into the log of a real mesh is what docs/entries.md describes."""

from __future__ import annotations

import asyncio
import time

import pytest

from libs.events.records import SALT_SIZE
from libs.transparency import leaf as leaves
from libs.transparency.leaf import Kind
from services.cli.decisions.log_copy import copy_log
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import read_service_access
from tests.fakes.entry_schema import require_documented_entry
from tests.mesh.running import RunningMesh

PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.mesh

OF_EVERY_START = {Kind.KEYSET, Kind.SESSION, Kind.POLICY, Kind.KEY_DECISION, Kind.ADMISSION, Kind.START}


def kinds_met(mesh: RunningMesh) -> set[Kind]:
    """The kinds of the public entries up to the newest checkpoint, each entry held against the schema."""
    access = read_service_access(MeshReader(mesh.state / "mesh.json"), "ledger")
    copied = asyncio.run(copy_log(access, PATIENCE_SECONDS))
    met = set()
    for leaf, body in copied.rows:
        if body is not None:
            kind = require_documented_entry(body[SALT_SIZE:])
            assert kind is leaves.parse(leaf).kind
            met.add(kind)
    return met


def test_every_public_entry_is_documented(mesh: RunningMesh) -> None:
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while not (met := kinds_met(mesh)) >= OF_EVERY_START:
        assert time.monotonic() < ends_at, met
