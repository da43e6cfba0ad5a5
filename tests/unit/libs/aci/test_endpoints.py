from __future__ import annotations

from libs.aci.endpoints import CHAT, COMPLETIONS, DEFINED, EMBEDDINGS, SERVED


def test_a_path_names_one_endpoint() -> None:
    assert len({endpoint.path for endpoint in DEFINED}) == len(DEFINED)
    assert {path: endpoint.path for path, endpoint in SERVED.items()} == {path: path for path in SERVED}
    assert set(SERVED.values()) <= set(DEFINED)


def test_encryption_has_fields_for_chat_completions_and_embeddings_alone() -> None:
    assert [endpoint for endpoint in DEFINED if endpoint.e2ee] == [CHAT, COMPLETIONS, EMBEDDINGS]


def test_only_an_endpoint_that_streams_may_answer_with_events() -> None:
    assert [endpoint for endpoint in DEFINED if "text/event-stream" not in endpoint.content_types] == [EMBEDDINGS]
    assert all("application/json" in endpoint.content_types for endpoint in DEFINED)
