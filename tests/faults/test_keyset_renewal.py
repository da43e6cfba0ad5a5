"""A router renews its keyset while clients use it: no request fails, and every answer is proven by what the log has."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from libs import jcs
from libs.aci import report as reports
from libs.client.checks import Check
from libs.client.exchange import chat_body
from libs.client.session import Patience, RouterSession, open_session
from libs.events.keyset import parse_keyset
from libs.transparency.leaf import Kind
from services.cli.chat.command import read_trust
from services.cli.mesh.layout import Layout
from services.cli.mesh.reading import MeshReader
from tests.faults.log import log_reader
from tests.mesh.running import RunningMesh, running_mesh, short_folder, teemesh

pytestmark = pytest.mark.mesh

LIFE_SECONDS = 90
RENEWALS = 2
PATIENCE = Patience(total=10.0)
"""So short that the session goes on under a keyset until the router no longer does."""


@dataclass(slots=True)
class Held:
    """What one session that is never opened again was answered."""

    keysets: list[str]
    failed: list[Check]
    answers: int = 0


@asynccontextmanager
async def _session(mesh: RunningMesh) -> AsyncIterator[RouterSession]:
    reader = MeshReader(mesh.state / "mesh.json")
    trust = read_trust(reader)
    url, key = mesh.mesh["router_url"], mesh.mesh["api_key"]
    async with open_session(url, key, trust, patience=PATIENCE) as session:
        yield session


async def _ask(mesh: RunningMesh, session: RouterSession, held: Held, *, sealed: bool) -> None:
    asked = json.loads(chat_body(mesh.mesh["model"], [{"role": "user", "content": "say hello"}], stream=True))
    # Short answers: a request has little time where keysets live so shortly.
    body = json.dumps({**asked, "max_tokens": 4}).encode()
    async with session.chat(body, sealed=sealed) as answer:
        _ = [piece async for piece in answer]
    materials = await session.gather(answer.exchange)
    receipt = materials.receipt
    assert isinstance(receipt, bytes)
    held.keysets.append(json.loads(receipt)["workload_keyset_digest"])
    held.failed += [check for check in await session.verify(answer.exchange) if not check.passed]
    held.answers += 1


async def _hold(mesh: RunningMesh, *, sealed: bool, until: float) -> Held:
    held = Held([], [])
    async with _session(mesh) as session:
        while len(set(held.keysets)) <= RENEWALS and time.monotonic() < until:
            await _ask(mesh, session, held, sealed=sealed)
            await asyncio.sleep(1)
    return held


@pytest.mark.timeout(280)
async def test_no_request_fails_and_every_answer_is_proven_while_the_router_renews_its_keyset() -> None:
    with short_folder() as folder, running_mesh(folder, "--keyset-seconds", str(LIFE_SECONDS)) as mesh:
        until = time.monotonic() + (RENEWALS + 1) * LIFE_SECONDS
        clear, sealed = await asyncio.gather(*(_hold(mesh, sealed=sealed, until=until) for sealed in (False, True)))
        async with log_reader(mesh, folder / "reader") as reader:
            whole = await reader.read()
        audited = teemesh("ledger", "verify", str(Layout(mesh.state).state("ledger") / "log"))
    for held in (clear, sealed):
        assert held.failed == []
        assert held.answers > RENEWALS
        assert len(set(held.keysets)) == RENEWALS + 1
    whole.verify_sequences()
    assert audited.returncode == 0, audited.stdout
    introduced = {}
    for logged in whole.of(Kind.KEYSET):
        if (document := parse_keyset(logged.entry.body).report) is not None:
            introduced[reports.parse(jcs.dumps(dict(document))).keyset.digest] = logged
    issuers = {logged.leaf.issuer for logged in introduced.values()}
    assert len(issuers) == 1, "one process, one issuer"
    for logged in whole.receipts().values():
        assert introduced[logged.entry.body["workload_keyset_digest"]].leaf.issuer_seq < logged.leaf.issuer_seq
