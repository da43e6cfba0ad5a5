"""What messages, items and prompts may be made of, at every endpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.aci import endpoints
from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from services.node.api.bodies import BODIES
from services.node.api.kinds import MediaUrlRefused, MemberRefused, ShapeRefused
from services.node.asked import read_body
from services.node.refused import BodyRefused

PNG = "data:image/png;base64,iVBORw0KGgo="
TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
ANTHROPIC = [MESSAGES, COUNT_TOKENS]


def read(endpoint: Endpoint, *, fetches: bool = False, **members: Any) -> None:
    read_body(json.dumps({"model": "m", **members}).encode(), frozenset({"m"}), endpoint, fetches=fetches)


def chat(*parts: Any, **members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts], **members}]}


def items(*parts: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [*parts]}]}


def result(*parts: Any) -> dict[str, Any]:
    return chat({"type": "tool_result", "tool_use_id": "t", "content": [*parts]})


def document(source: Any) -> dict[str, Any]:
    return {"type": "document", "title": "a", "context": "b", "citations": {"enabled": True}, "source": source}


def image(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def source(url: Any) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


def item_image(url: Any) -> dict[str, Any]:
    return {"type": "input_image", "detail": "auto", "image_url": url}


EPHEMERAL = {"type": "ephemeral", "ttl": "5m"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
WHOLE: list[tuple[Endpoint, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "developer", "content": "a", "name": "b"}]}),
    (
        CHAT,
        chat(
            TEXT | {"prompt_cache_breakpoint": {"mode": "explicit"}},
            image(PNG, detail="low"),
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "file", "file": {"file_data": PNG, "filename": "a.pdf"}},
            {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        ),
    ),
    (
        CHAT,
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "tool_calls": [CALL]},
                {"role": "tool", "content": [TEXT], "tool_call_id": "c"},
                {"role": "assistant", "content": None, "tool_calls": [CALL | {"index": 0}], "reasoning": "so"},
                {"role": "assistant", "content": "a", "annotations": [], "audio": None, "function_call": None}
                | {"refusal": None, "tool_calls": None, "reasoning_content": None},
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            ],
            "prediction": {"type": "content", "content": [TEXT]},
        },
    ),
    *((COMPLETIONS, {"prompt": prompt}) for prompt in ("a", ["a", "b"], [1, 2], [[1], [2, 3]])),
    *((EMBEDDINGS, {"input": prompt}) for prompt in ("a", ["a", "b"], [1, 2], [[1], [2, 3]])),
    *((each, {"messages": [{"role": "user", "content": "a"}], "system": "b"}) for each in ANTHROPIC),
    *((each, {"system": [TEXT | {"cache_control": EPHEMERAL}], **chat(TEXT, IMAGE)}) for each in ANTHROPIC),
    (
        MESSAGES,
        chat(
            TEXT | {"citations": [{"type": "char_location", "cited_text": "a"}], "cache_control": None},
            document({"type": "base64", "media_type": "application/pdf", "data": "AAAA"}),
            document({"type": "text", "media_type": "text/plain", "data": ""}),
            document({"type": "content", "content": [TEXT, IMAGE]}),
            document({"type": "content", "content": "a"}),
            {"type": "search_result", "source": "https://a.example", "title": "b", "content": [TEXT]},
            {"type": "thinking", "thinking": "a", "signature": ""},
            {"type": "redacted_thinking", "data": "a"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"uuid": [{}]}, "caller": {"type": "direct"}},
            {"type": "tool_result", "tool_use_id": "t", "content": "a", "is_error": False, "cache_control": EPHEMERAL},
        ),
    ),
    (
        MESSAGES,
        result(TEXT, IMAGE, document({"type": "text", "data": "a"}), {"type": "tool_reference", "tool_name": "f"}),
    ),
    (RESPONSES, {"input": "a"}),
    (
        RESPONSES,
        items(
            {"type": "input_text", "text": "a"},
            item_image(PNG),
            {"type": "input_file", "file_data": "AAAA", "filename": "a.pdf"},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        ),
    ),
    (
        RESPONSES,
        {
            "input": [
                {"type": "message", "role": "assistant", "id": "m", "status": "completed", "phase": None}
                | {"content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]},
                {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
                {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "a"}], "status": None}
                | {"content": [{"type": "reasoning_text", "text": "a"}], "encrypted_content": None},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "i", "namespace": None},
                {"type": "function_call_output", "call_id": "c", "output": "a"},
                {"type": "function_call_output", "call_id": "c", "output": [item_image(PNG)]},
                {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "a"},
                {"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "a"}]},
            ]
        },
    ),
]


@pytest.mark.parametrize(("endpoint", "members"), WHOLE, ids=lambda value: getattr(value, "path", ""))
def test_what_the_apis_define_is_taken(endpoint: Endpoint, members: dict[str, Any]) -> None:
    read(endpoint, **members)


def test_what_is_taken_is_tried() -> None:
    assert {endpoint for endpoint, _ in WHOLE} == set(endpoints.DEFINED) == BODIES.keys()


def _objects(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all objects, but of those in which anything may be."""
    found = [path] if isinstance(value, dict) and path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [
        each
        for name, entry in entries
        if name not in ("annotations", "caller", "citations", "input") or path == ()
        for each in _objects(entry, (*path, name))
    ]


OBJECTS = [
    pytest.param(endpoint, members, path, id=f"{endpoint.path}-{'.'.join(map(str, path))}-{position}")
    for position, (endpoint, members) in enumerate(WHOLE)
    for path in _objects(members)
]


@pytest.mark.parametrize("value", ["X", None], ids=["set", "null"])
@pytest.mark.parametrize(("endpoint", "members", "path"), OBJECTS)
def test_nothing_of_a_message_has_a_name_in_the_engines_caches(
    endpoint: Endpoint, members: dict[str, Any], path: tuple[Any, ...], value: str | None
) -> None:
    """Wherever it stands: vLLM takes it in a part, and what engines make of others' objects grows."""
    attacked = json.loads(json.dumps(members))
    found = attacked
    for name in path:
        found = found[name]
    found["uuid"] = value
    with pytest.raises(MemberRefused, match="has a member that is not taken: 'uuid'"):
        read(endpoint, **attacked)


def _all_types() -> set[str]:
    text = json.dumps([members for _, members in WHOLE])
    return {each["type"] for each in _values(json.loads(text)) if isinstance(each.get("type"), str)}


def _values(value: Any) -> list[dict[str, Any]]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if isinstance(value, dict) else []) + [found for each in inner for found in _values(each)]


def test_every_type_is_attacked() -> None:
    assert _all_types() >= {"audio_url", "file", "image_url", "input_audio", "input_image", "tool_result", "video_url"}


PROMPT: Any = {"prompt_string": "a", "multimodal_data": ["AAAA"]}
"""As llama.cpp's server takes one."""
SHOWS_NOTHING: list[tuple[Endpoint, dict[str, Any]]] = [
    *(
        (CHAT, chat(part))
        for part in (
            {"image_url": {"url": PNG}},
            {"type": None, "image_url": PNG},
            {"type": 1, "image_url": PNG},
            {"type": "image_url"},
            {"type": "image_url", "image_url": None},
            {"type": "image_url", "image_url": PNG},
            {"type": "image_url", "image_url": [PNG]},
            image(None),
            image(7),
            {"type": "input_audio", "input_audio": {}},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "input_audio", "input_audio": None},
            {"type": "file", "file": {}},
            {"type": "file", "file": {"file_id": "f"}},
            {"type": "image_embeds", "image_embeds": "AAAA"},
            {"type": "audio_embeds", "audio_embeds": "AAAA"},
            {"type": "prompt_embeds", "data": "AAAA"},
            {"type": "image_pil", "image_pil": None},
            {"type": "input_image", "image_url": PNG},
            {"type": "text", "text": [TEXT]},
            {"type": "x" * 100_000},
            TEXT | {"x" * 100_000: 1},
            "a",
            7,
            None,
            [TEXT],
        )
    ),
    *((CHAT, {"messages": [message]}) for message in ("a", None, [TEXT])),
    *(
        (CHAT, chat(TEXT, **{name: None}))
        for name in ("prefix", "partial", "task", "tools", "thinking", "cache_control")
    ),
    (CHAT, {"messages": [{"role": "user", "content": TEXT}]}),
    (CHAT, {"messages": {"role": "user", "content": "a"}}),
    (CHAT, {"messages": [{"role": ["user"], "content": "a"}]}),
    *((COMPLETIONS, {"prompt": prompt}) for prompt in (PROMPT, [PROMPT], [[PROMPT]], [[["a"]]])),
    *((EMBEDDINGS, {"input": prompt}) for prompt in ({"content": "a"}, [TEXT], [[TEXT]])),
    *(
        (MESSAGES, chat(block))
        for block in (
            {"type": "image"},
            {"type": "image", "source": None},
            {"type": "image", "source": {"type": "base64", "data": ""}},
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
            {"type": "image", "source": {"data": "AAAA"}},
            document({"type": "content", "content": [document({"type": "text", "data": "a"})]}),
            {"type": "container_upload", "file_id": "f"},
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            {"type": "tool_addition", "tool": {}},
        )
    ),
    (MESSAGES, result({"type": "tool_result", "tool_use_id": "t"})),
    (MESSAGES, result({"type": "image", "source": {"type": "base64"}})),
    (MESSAGES, {"system": [IMAGE]}),
    (MESSAGES, {"messages": [{"role": "user", "content": "a", "name": "b"}]}),
    *(
        (RESPONSES, items(part))
        for part in (
            {"type": "input_image"},
            item_image(None),
            {"type": "input_image", "file_id": "f"},
            {"type": "input_file", "file_id": "f"},
            {"type": "image_url", "image_url": {"url": PNG}},
        )
    ),
    *(
        (RESPONSES, {"input": [item]})
        for item in (
            {"type": "item_reference", "id": "i"},
            {"type": "mcp_call", "id": "i"},
            {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "file_id": "f"}},
            {"type": "function_call_output", "call_id": "c", "output": {"type": "input_text", "text": "a"}},
            {"role": "user", "content": "a", "tools": []},
        )
    ),
]


@pytest.mark.parametrize(
    ("endpoint", "members"), SHOWS_NOTHING, ids=lambda value: getattr(value, "path", str(value)[:60])
)
def test_what_the_apis_do_not_define_or_keep_elsewhere_is_refused(endpoint: Endpoint, members: dict[str, Any]) -> None:
    with pytest.raises(BodyRefused) as refused:
        read(endpoint, fetches=True, **members)
    assert (refused.value.status, len(str(refused.value)) < 200) == (400, True)


FETCHED: list[tuple[Endpoint, Any]] = [
    (CHAT, lambda url: chat(image(url))),
    (CHAT, lambda url: chat({"type": "audio_url", "audio_url": {"url": url}})),
    (CHAT, lambda url: chat({"type": "video_url", "video_url": {"url": url}})),
    *((each, lambda url: chat(source(url))) for each in ANTHROPIC),
    (MESSAGES, lambda url: result(source(url))),
    (MESSAGES, lambda url: result(document({"type": "url", "url": url}))),
    (MESSAGES, lambda url: chat(document({"type": "content", "content": [source(url)]}))),
    (RESPONSES, lambda url: items(item_image(url))),
    (RESPONSES, lambda url: items({"type": "input_file", "file_url": url})),
    (RESPONSES, lambda url: {"input": [{"type": "function_call_output", "call_id": "c", "output": [item_image(url)]}]}),
]
WEB = ["http://a.example/b.png", "https://a.example/b.png"]
NO_URLS = ["", "file:///etc/passwd", "ftp://a.example/b", "//a.example/b", " data:,a", "DATA:,a", "HTTPS://a.example"]


@pytest.mark.parametrize(("endpoint", "naming"), FETCHED)
def test_what_would_be_fetched_is_refused_unless_the_engine_judges_it(endpoint: Endpoint, naming: Any) -> None:
    read(endpoint, **naming(PNG))
    for url in WEB:
        with pytest.raises(MediaUrlRefused, match="must begin with data:") as refused:
            read(endpoint, **naming(url))
        assert url not in str(refused.value)
        read(endpoint, fetches=True, **naming(url))
    for url in NO_URLS:
        with pytest.raises(MediaUrlRefused):
            read(endpoint, fetches=True, **naming(url))


def test_a_refused_url_says_what_it_is() -> None:
    assert (MediaUrlRefused.reason, MediaUrlRefused.status) == ("MEDIA_URL_REFUSED", 400)
    assert MediaUrlRefused.type == MemberRefused.type == "invalid_request_error"


def test_a_refusal_says_where() -> None:
    with pytest.raises(MemberRefused, match=r"^messages\[0\]\.content\[1\] has a member that is not taken: 'uuid'$"):
        read(CHAT, **chat(TEXT, TEXT | {"uuid": "X"}))
    with pytest.raises(BodyRefused, match=r"messages\[0\]\.content\[0\]"):
        read(CHAT, **chat(IMAGE))


def calls(arguments: Any) -> list[tuple[Endpoint, dict[str, Any]]]:
    function = {"name": "f", "arguments": arguments}
    message = {"role": "assistant", "content": None}
    return [
        (CHAT, {"messages": [message | {"tool_calls": [CALL | {"function": function}]}]}),
        (CHAT, {"messages": [message | {"function_call": function}]}),
        (RESPONSES, {"input": [{"type": "function_call", "call_id": "c", **function}]}),
    ]


@pytest.mark.parametrize("place", range(3))
def test_arguments_that_are_a_text_have_no_more_levels_than_a_body(place: int) -> None:
    for text in ("", "not JSON", "[" * 64 + "]" * 64, json.dumps({"code": "[" * 999}), '{"a":[]}' * 999):
        endpoint, members = calls(text)[place]
        read(endpoint, **members)
    for text in ("[" * 65 + "]" * 65, '{"a":' * 65 + "0" + "}" * 65, "[" * 400_000, '["\\"",' + "[" * 64):
        endpoint, members = calls(text)[place]
        with pytest.raises(ShapeRefused, match=r"\.arguments must be JSON of at most 64 levels$"):
            read(endpoint, **members)


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def test_nothing_in_a_body_has_more_levels_than_engines_take() -> None:
    def blocks(levels: int) -> dict[str, Any]:
        return chat({"type": "tool_use", "id": "t", "name": "f", "input": nested(levels)})

    read(MESSAGES, **blocks(59))
    for endpoint, members in ((MESSAGES, blocks(60)), (CHAT, chat(TEXT) | {"metadata": nested(64)})):
        with pytest.raises(BodyRefused, match=r"^the body must be JSON of at most 64 levels$"):
            read(endpoint, **members)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(sorted(_all_types())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "image_url", "url", "source", "uuid"]), inner)
    ),
    max_leaves=20,
)


@given(value=JSON, endpoint=st.sampled_from(endpoints.DEFINED))
def test_whatever_stands_there_is_taken_or_refused(value: Any, endpoint: Endpoint) -> None:
    for name in {"messages", "system", "prompt", "input", "prediction"} & BODIES[endpoint].known.keys():
        try:
            read(endpoint, **{name: value})
        except BodyRefused:
            continue
        assert '"uuid"' not in json.dumps(value)
