"""Session documents from a registry: each under its digest, and of all of them no more than so much."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from libs.aci.session import SessionIdMismatch
from libs.errors import MeshError
from libs.identity.any_peer import Channels
from services.registry.sessions import SealedSession, draft_session
from services.router.routing.session_documents import SessionDocuments
from tests.fakes.leases import node_lease
from tests.fakes.routers import RouterBench


def sealed(bench: RouterBench, name: str) -> SealedSession:
    """A session that the registry has; those of names of one length are of one length."""
    session = draft_session(node_lease(name), "127.0.0.1:4000")
    bench.registry.sessions[bytes.fromhex(session.session_id)] = session.document
    return session


def documents(bench: RouterBench, octets: int) -> SessionDocuments:
    return SessionDocuments(cast(Channels, bench.registry_peer), octets)


async def refusal(kept: SessionDocuments, session: SealedSession) -> str:
    with pytest.raises(MeshError) as refused:
        await kept.get(session.session_id)
    return refused.value.reason


async def test_a_document_is_fetched_once(bench: RouterBench) -> None:
    session = sealed(bench, "a")
    kept = documents(bench, len(session.document))
    assert await kept.get(session.session_id) == session.document
    bench.registry.sessions.clear()
    assert await kept.get(session.session_id) == session.document


async def test_a_registry_cannot_make_a_router_keep_more_than_so_much(bench: RouterBench) -> None:
    first, second, third = (sealed(bench, name) for name in ("a", "b", "c"))
    kept = documents(bench, 2 * len(first.document))
    for session in (first, second, third):
        await kept.get(session.session_id)
    bench.registry.sessions.clear()
    assert await refusal(kept, first) == "SESSION_UNKNOWN"
    for session in (second, third):
        assert await kept.get(session.session_id) == session.document


async def test_a_document_that_is_fetched_twice_at_once_counts_once(bench: RouterBench) -> None:
    first, second = (sealed(bench, name) for name in ("a", "b"))
    kept = documents(bench, 2 * len(first.document))
    await asyncio.gather(*(kept.get(first.session_id) for _ in range(4)))
    await kept.get(second.session_id)
    bench.registry.sessions.clear()
    for session in (first, second):
        assert await kept.get(session.session_id) == session.document


async def test_what_an_id_does_not_name_is_not_kept(bench: RouterBench) -> None:
    session, other = (sealed(bench, name) for name in ("a", "b"))
    kept = documents(bench, 2 * len(session.document))
    bench.registry.sessions[bytes.fromhex(session.session_id)] = other.document
    with pytest.raises(SessionIdMismatch):
        await kept.get(session.session_id)
    bench.registry.sessions[bytes.fromhex(session.session_id)] = session.document
    assert await kept.get(session.session_id) == session.document
