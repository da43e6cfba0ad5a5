"""A router that completes an answer and logs nothing: whatever it shows instead, the client can name what is missing.

Its receipts are genuine: it is attested and signs them with its own key. The ledger's keys it does not have.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.client.exchange import chat_body
from libs.client.session import Patience, open_session
from tests.fakes.attested_mesh import MODEL, AttestedMesh
from tests.fakes.https_router import API_KEY, RouterTwin

QUICK = Patience(settle=0.05, between=0.01)


async def failures(router: RouterTwin, mesh: AttestedMesh) -> dict[int, str | None]:
    """Get a complete answer and return which checks of it fail, and why."""
    async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session:
        async with session.chat(chat_body(MODEL, [{"role": "user", "content": "hello"}], stream=True)) as answer:
            assert "".join([piece async for piece in answer])
        checks = await session.verify(answer.exchange)
    return {check.number: check.reason for check in checks if not check.passed}


async def test_answer_without_any_acknowledgement_is_named(router: RouterTwin, mesh: AttestedMesh) -> None:
    router.not_yet = 10**6
    failed = await failures(router, mesh)
    assert failed[11] == "ROUTER_REFUSED"
    assert not {1, 2, 3, 4, 5, 6} & failed.keys()


async def test_acknowledgement_that_the_router_made_itself_is_named(router: RouterTwin, mesh: AttestedMesh) -> None:
    mesh.ack_key = mesh.checkpoint_key = Ed25519PrivateKey.generate()
    assert await failures(router, mesh) == {11: "ACKNOWLEDGEMENT_INVALID", 12: "NOTE_SIGNATURE_INVALID"}


@pytest.mark.parametrize(
    ("borrow", "failed"),
    [
        (("acknowledgement",), {11: "ACKNOWLEDGEMENT_OF_ANOTHER_ENTRY"}),
        (("inclusion", "checkpoint"), {12: "PROOF_INVALID"}),
        (
            ("acknowledgement", "inclusion", "checkpoint", "leaf_data", "leaf_index"),
            {8: "ENTRY_NOT_COMMITTED"},
        ),
    ],
)
async def test_proofs_of_an_answer_that_was_logged_do_not_serve_for_another(
    router: RouterTwin, mesh: AttestedMesh, borrow: tuple[str, ...], failed: dict[int, str]
) -> None:
    logged = mesh.serve(b"{}", b"logged").commitment
    router.lies["commitment"] = _with({name: logged[name] for name in borrow})
    assert await failures(router, mesh) == failed


def _with(borrowed: dict[str, object]) -> Callable[[bytes], bytes]:
    return lambda commitment: jcs.dumps({**jcs.loads_object(commitment), **borrowed})
