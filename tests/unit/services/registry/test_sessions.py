"""Sessions: one for each node key, whoever seals first, named by its content."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from libs.aci.session import TlsBinding, verify_session
from services.registry.sessions import SessionDamaged, draft_session
from tests.fakes.leases import node_lease
from tests.fakes.registries import Mesh, Registry


async def test_a_session_is_named_by_its_content_and_says_what_was_appraised(registry: Registry) -> None:
    node = node_lease()
    sealed = await registry.sessions.seal(node, draft_session(node, "127.0.0.1:4000"))
    session = verify_session(sealed.document, sealed.session_id)
    assert session.evidence == node.evidence.document
    assert session.bindings == (TlsBinding("https://127.0.0.1:4000", node.certificate.spki_sha256.hex()),)
    assert session.expires_at == int(node.until)
    assert await registry.sessions.get(sealed.session_id) == sealed.document


async def test_the_first_registry_to_seal_decides_for_all(mesh: Mesh) -> None:
    node = node_lease()
    later = replace(node, appraisal=replace(node.appraisal, appraised_at=node.appraisal.appraised_at + 1))
    async with mesh.registry() as first, mesh.registry() as second:
        drafts = [draft_session(one, "127.0.0.1:4000") for one in (node, later)]
        assert drafts[0] != drafts[1]
        sealed = await asyncio.gather(first.sessions.seal(node, drafts[0]), second.sessions.seal(later, drafts[1]))
        assert sealed[0] == sealed[1] == await first.sessions.of(later)
        assert sealed[0] in drafts


async def test_a_session_stored_but_not_yet_indexed_is_sealed_all_the_same(registry: Registry) -> None:
    """What a registry leaves that stops between the two writes."""
    node = node_lease()
    draft = draft_session(node, "127.0.0.1:4000")
    await registry.store.sessions.put(f"session.{draft.session_id}", draft.document, 0)
    assert await registry.sessions.seal(node, draft) == draft
    assert await registry.sessions.of(node) == draft


async def test_an_index_to_a_lost_session_is_written_anew(registry: Registry) -> None:
    node = node_lease()
    await registry.store.sessions.put(f"key.{node.certificate.spki_sha256.hex()}", b"00" * 32, 0)
    assert await registry.sessions.of(node) is None
    draft = draft_session(node, "127.0.0.1:4000")
    assert await registry.sessions.seal(node, draft) == await registry.sessions.of(node) == draft


async def test_another_key_of_the_same_node_has_another_session(registry: Registry) -> None:
    nodes = [node_lease(), node_lease(key="second")]
    sealed = [await registry.sessions.seal(node, draft_session(node, "127.0.0.1:4000")) for node in nodes]
    assert sealed[0].session_id != sealed[1].session_id


async def test_what_is_no_id_names_no_session(registry: Registry) -> None:
    assert await registry.sessions.get("") is None
    assert await registry.sessions.get("00" * 32) is None
    assert await registry.sessions.get("00" * 31) is None


async def test_a_session_that_somebody_edited_is_not_given_out(registry: Registry) -> None:
    node = node_lease()
    sealed = await registry.sessions.seal(node, draft_session(node, "127.0.0.1:4000"))
    await edited(registry, sealed.session_id, sealed.document.replace(b"asserted", b"unknown!"))
    with pytest.raises(SessionDamaged) as refused:
        await registry.sessions.get(sealed.session_id)
    assert refused.value.reason == "SESSION_DAMAGED"


@pytest.mark.parametrize("change", [b"", b" ", b"x"])
async def test_a_damaged_session_is_sealed_anew(registry: Registry, change: bytes) -> None:
    node = node_lease()
    draft = draft_session(node, "127.0.0.1:4000")
    await registry.sessions.seal(node, draft)
    await edited(registry, draft.session_id, draft.document + change if change else b"")
    if change:
        assert await registry.sessions.of(node) is None
    assert await registry.sessions.seal(node, draft) == draft
    assert await registry.sessions.get(draft.session_id) == draft.document


async def edited(registry: Registry, session_id: str, document: bytes) -> None:
    stored = await registry.store.sessions.get(f"session.{session_id}")
    assert stored is not None
    await registry.store.sessions.put(f"session.{session_id}", document, stored.revision)
