"""A second router of the same mesh: it knows the same sessions, and lets requests wait or refuses them by itself."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from tests.mesh.https import Answer, Https
from tests.mesh.patience import PATIENCE_SECONDS, until
from tests.mesh.routers import Router, another_router
from tests.mesh.running import RunningMesh

pytestmark = pytest.mark.mesh

CHAT = "/v1/chat/completions"
_CAPACITY = 2
"""Of the local node's engine."""
_WAITING = 2
"""How many may wait at the second router."""
_LONG_TOKENS = 900


@pytest.fixture(scope="module")
def second(mesh: RunningMesh) -> Iterator[Router]:
    """Another instance, configured as the first one but for what two cannot share, and a line of two."""
    with another_router(mesh, queue_length=_WAITING, queue_seconds=PATIENCE_SECONDS) as router:
        yield router


def sessions_of(https: Https) -> dict[str, bytes]:
    """The sessions that a router would cite now, each as it serves it."""
    listed = https.get("/v1/aci/sessions").json
    ids = [session["session_id"] for session in listed["sessions"]]
    return {each: https.get(f"/v1/aci/sessions/{each}").body for each in ids}


def ask(https: Https, mesh: RunningMesh, **members: object) -> Answer:
    return https.post(CHAT, json.dumps({**question(mesh), "max_tokens": 8, **members}).encode())


def question(mesh: RunningMesh) -> dict[str, object]:
    asked = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
    return {"model": mesh.mesh["model"], "messages": [asked]}


@contextmanager
def occupying(https: Https, mesh: RunningMesh) -> Iterator[None]:
    """A client of whose answer there is far more to come when it leaves."""
    # The model would end its sentence: the engine is told to go on.
    body = json.dumps({**question(mesh), "max_tokens": _LONG_TOKENS, "stream": True, "ignore_eos": True}).encode()
    context = ssl.create_default_context(cafile=https.ca)
    address = urlsplit(https.url)
    connection = http.client.HTTPSConnection(
        str(address.hostname), address.port, timeout=PATIENCE_SECONDS, context=context
    )
    try:
        connection.request("POST", CHAT, body, {"Authorization": f"Bearer {https.api_key}"})
        assert connection.getresponse().readline().startswith(b"data: ")
        yield
    finally:
        connection.close()


def outcome_of(https: Https, answer: Answer) -> dict[str, object]:
    """What the receipt says of who served."""
    receipt = https.get(f"/v1/aci/receipts/{answer.headers['X-Receipt-Id']}").json
    (event,) = [event for event in receipt["event_log"] if event["type"] == "upstream.verified"]
    found: dict[str, object] = event
    return found


def test_a_session_of_one_router_is_pinned_at_the_other(mesh: RunningMesh, https: Https, second: Router) -> None:
    here, there = sessions_of(https), sessions_of(second.https)
    assert here
    assert here == there, "they are named by their content, which both have from the registry"
    for learnt, asked in ((here, second.https), (there, https)):
        for session in learnt:
            answer = ask(asked, mesh, provider={"aci_session_ids": [session]})
            assert answer.status == 200
            assert outcome_of(asked, answer)["session_id"] == session


def test_a_session_that_nobody_has_is_accepted_by_neither(mesh: RunningMesh, https: Https, second: Router) -> None:
    for asked in (https, second.https):
        answer = ask(asked, mesh, provider={"aci_session_ids": ["ab" * 32]})
        assert (answer.status, answer.error_type) == (412, "session_not_accepted")


def test_more_clients_than_the_node_has_room_for_are_all_answered(mesh: RunningMesh, https: Https) -> None:
    with ThreadPoolExecutor(6 * _CAPACITY) as clients:
        answers = list(clients.map(lambda seed: ask(https, mesh, seed=seed), range(6 * _CAPACITY)))
    assert [answer.status for answer in answers] == [200] * len(answers)
    receipts = {answer.headers["X-Receipt-Id"] for answer in answers}
    assert len(receipts) == len(answers)
    assert all(https.get(f"/v1/aci/receipts/{receipt}").status == 200 for receipt in receipts)


def test_a_full_router_refuses_with_a_receipt_and_serves_those_who_waited(mesh: RunningMesh, second: Router) -> None:
    https = second.https
    with ExitStack() as running, ThreadPoolExecutor(_WAITING) as clients:
        for _ in range(_CAPACITY):
            running.enter_context(occupying(https, mesh))
        waiting = [clients.submit(ask, https, mesh) for _ in range(_WAITING)]
        until(lambda: second.counted("teemesh_router_waiting") == _WAITING)
        refused = ask(https, mesh)
        assert (refused.status, refused.error_type) == (429, "overloaded")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert outcome_of(https, refused)["reason"] == "overloaded"
        running.close()
        assert [each.result().status for each in waiting] == [200] * _WAITING
    assert second.counted("teemesh_router_waiting") == 0
    assert second.counted('teemesh_router_turned_away_total{reason="full"}') == 1
