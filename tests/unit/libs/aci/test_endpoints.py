from __future__ import annotations

import pytest

from libs.aci.endpoints import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    DEFINED,
    EMBEDDINGS,
    MESSAGES,
    SERVED,
    offered,
    paths,
    protocol_at,
)
from libs.aci.sse import Protocol


def test_a_path_names_one_endpoint() -> None:
    assert len({endpoint.path for endpoint in DEFINED}) == len(DEFINED)
    assert {path: endpoint.path for path, endpoint in SERVED.items()} == {path: path for path in SERVED}
    assert set(SERVED.values()) <= set(DEFINED)


def test_encryption_has_fields_for_chat_completions_and_embeddings_alone() -> None:
    assert [endpoint for endpoint in DEFINED if endpoint.e2ee] == [CHAT, COMPLETIONS, EMBEDDINGS]


def test_only_an_endpoint_that_streams_may_answer_with_events() -> None:
    assert [endpoint for endpoint in DEFINED if "text/event-stream" not in endpoint.content_types] == [
        EMBEDDINGS,
        COUNT_TOKENS,
    ]
    assert all("application/json" in endpoint.content_types for endpoint in DEFINED)


def test_a_node_offers_what_its_claims_name_and_is_known_here() -> None:
    assert offered(paths(DEFINED)) == set(DEFINED)
    assert offered(["/v1/messages", "/v1/of-a-newer-node"]) == {MESSAGES}
    assert offered([]) == set()


def test_a_node_that_was_measured_before_offers_what_all_did() -> None:
    assert offered(None) == {CHAT, COMPLETIONS}


@pytest.mark.parametrize("claimed", ["/v1/messages", {"/v1/messages": True}, ["/v1/messages", 7], True, 0], ids=repr)
def test_claims_that_cannot_be_read_offer_nothing(claimed: object) -> None:
    assert offered(claimed) == set()


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        ("/v1/messages", Protocol.MESSAGES),
        ("/v1/messages/count_tokens", Protocol.MESSAGES),
        ("/v1/messages/batches", Protocol.MESSAGES),
        ("/v1/messagesque", Protocol.CHAT),
        ("/v1/responses", Protocol.RESPONSES),
        ("/v1/models", Protocol.CHAT),
        ("/nowhere", Protocol.CHAT),
    ],
)
def test_a_path_is_refused_as_its_clients_read_it(path: str, protocol: Protocol) -> None:
    assert protocol_at(path) is protocol
