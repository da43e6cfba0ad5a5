"""The SDKs of OpenAI and Anthropic, unchanged, against a mesh: every endpoint, buffered and streamed, and refusals."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from libs import jcs
from libs.aci.receipt import parse
from tests.mesh.https import Https
from tests.mesh.running import RunningMesh

pytestmark = pytest.mark.mesh

QUESTION = "What is the capital of France? Answer in one sentence."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
CITIES = ["Paris", "Rome"]
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string", "enum": CITIES}}, "required": ["city"]}
"""Few answers are valid, so every one of them comes to its end."""
CERTAIN: Any = {"max_tokens": 128, "temperature": 0}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALLED: Any = [
    {"role": "user", "content": "How warm is it in Paris?"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "21 degrees"}]},
]

demanded = pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([WEATHER], "required"),
        ([CLOCK, WEATHER], {"type": "function", "function": {"name": "weather"}}),
    ],
    ids=["required", "named"],
)


@pytest.fixture
def model(mesh: RunningMesh) -> str:
    return str(mesh.mesh["model"])


def endpoint_of(https: Https, identifier: str) -> str:
    """Where the receipt says that the answer of this id was given."""
    found = https.get(f"/v1/aci/receipts/{identifier}")
    assert found.status == 200
    receipt = parse(jcs.dumps(found.json))
    assert receipt.chat_id == identifier
    return receipt.endpoint


def test_openai_models_say_where_they_are_served(openai_client: OpenAI, model: str) -> None:
    (listed,) = openai_client.models.list()
    assert (listed.id, (listed.model_extra or {})["endpoints"]) == (
        model,
        [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/responses",
        ],
    )


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_openai_chat_may_call_tools(openai_client: OpenAI, https: Https, model: str, stream: bool) -> None:
    """Whether it does is the model's to choose."""
    asked: Any = {"model": model, "messages": MESSAGES, "max_tokens": 4, "tools": [CLOCK, WEATHER]}
    if stream:
        (identifier,) = {chunk.id for chunk in openai_client.chat.completions.create(**asked, stream=True)}
    else:
        identifier = openai_client.chat.completions.create(**asked).id
    assert endpoint_of(https, identifier) == "/v1/chat/completions"


@demanded
def test_openai_chat_calls_a_tool_that_is_demanded(
    openai_client: OpenAI, https: Https, model: str, tools: Any, choice: Any
) -> None:
    answer = openai_client.chat.completions.create(
        model=model, messages=MESSAGES, **CERTAIN, tools=tools, tool_choice=choice
    )
    (only,) = answer.choices
    (call,) = list(only.message.tool_calls or ())
    assert (only.finish_reason, call.type) == ("tool_calls", "function")
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in CITIES
    assert endpoint_of(https, answer.id) == "/v1/chat/completions"


@demanded
def test_openai_chat_streams_the_call_of_a_tool_that_is_demanded(
    openai_client: OpenAI, https: Https, model: str, tools: Any, choice: Any
) -> None:
    names, identifiers, arguments, ends = [], set(), "", []
    for chunk in openai_client.chat.completions.create(
        model=model, messages=MESSAGES, **CERTAIN, tools=tools, tool_choice=choice, stream=True
    ):
        identifiers.add(chunk.id)
        for part in chunk.choices:
            ends += [part.finish_reason] if part.finish_reason else []
            for call in part.delta.tool_calls or ():
                assert call.index == 0
                assert call.function is not None
                names += [call.function.name] if call.function.name else []
                arguments += call.function.arguments or ""
    assert (names, ends) == (["weather"], ["tool_calls"])
    assert json.loads(arguments)["city"] in CITIES
    (identifier,) = identifiers
    assert endpoint_of(https, identifier) == "/v1/chat/completions"


def test_openai_chat_answers_with_the_result_of_a_call(openai_client: OpenAI, model: str) -> None:
    asked: Any = [{"role": "user", "content": "How warm is it in Paris?"}]
    answer = openai_client.chat.completions.create(
        model=model, messages=asked, **CERTAIN, tools=[WEATHER], tool_choice="required"
    )
    called = answer.choices[0].message
    (call,) = list(called.tool_calls or ())
    asked += [called, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
    told = openai_client.chat.completions.create(
        model=model, messages=asked, max_tokens=16, tools=[WEATHER], tool_choice="none"
    )
    assert told.choices[0].message.content
    assert not told.choices[0].message.tool_calls


def test_openai_chat_refuses_to_call_what_is_not_among_the_tools(openai_client: OpenAI, model: str) -> None:
    other: Any = {"type": "function", "function": {"name": "news"}}
    with pytest.raises(openai.BadRequestError):
        openai_client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=1, tools=[WEATHER], tool_choice=other
        )


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openai_embeddings_in_both_forms(openai_client: OpenAI, model: str, encoding: Any) -> None:
    answer = openai_client.embeddings.create(model=model, input=["red", "blue"], encoding_format=encoding)
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert answer.usage.prompt_tokens > 0


def test_openai_embeddings_are_numbers_without_a_word_about_their_form(openai_client: OpenAI, model: str) -> None:
    """The SDK asks for base64 by itself, and reads it."""
    (entry,) = openai_client.embeddings.create(model=model, input="red").data
    (same,) = openai_client.embeddings.create(model=model, input="red", encoding_format="float").data
    assert entry.embedding == pytest.approx(same.embedding, rel=1e-4)


def test_openai_responses_buffered(openai_client: OpenAI, https: Https, model: str) -> None:
    answer = openai_client.responses.create(model=model, input=QUESTION, max_output_tokens=16, temperature=0)
    assert answer.output_text
    assert answer.status in ("completed", "incomplete")
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert endpoint_of(https, answer.id) == "/v1/responses"


def test_openai_responses_streamed(openai_client: OpenAI, https: Https, model: str) -> None:
    said, identifier, last = "", "", ""
    for event in openai_client.responses.create(model=model, input=QUESTION, max_output_tokens=16, stream=True):
        last = event.type
        if event.type == "response.created":
            identifier = event.response.id
        elif event.type == "response.output_text.delta":
            said += event.delta
    assert said
    assert last in ("response.completed", "response.incomplete")
    assert endpoint_of(https, identifier) == "/v1/responses"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}], ids=["required", "named"])
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_openai_responses_call_a_tool_that_is_demanded(
    openai_client: OpenAI, model: str, choice: Any, stream: bool
) -> None:
    weather = {"type": "function", **WEATHER["function"]}
    clock = {"type": "function", **CLOCK["function"]}
    tools = [weather] if choice == "required" else [clock, weather]
    asked: Any = {"model": model, "input": QUESTION, "max_output_tokens": 128, "temperature": 0}
    asked |= {"tools": tools, "tool_choice": choice}
    if stream:
        events = list(openai_client.responses.create(**asked, stream=True))
        (answer,) = [event.response for event in events if event.type == "response.completed"]
    else:
        answer = openai_client.responses.create(**asked)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"] in CITIES


@pytest.mark.parametrize(
    "kept", [{"store": True}, {"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "conv_1"}]
)
def test_openai_responses_that_would_be_kept_are_refused(
    openai_client: OpenAI, model: str, kept: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.responses.create(model=model, input=QUESTION, **kept)
    assert refused.value.type == "invalid_request_error"


def test_anthropic_messages_buffered(anthropic_client: Anthropic, https: Https, model: str) -> None:
    answer = anthropic_client.messages.create(model=model, messages=MESSAGES, max_tokens=16)
    (block,) = answer.content
    assert block.type == "text"
    assert block.text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert endpoint_of(https, answer.id) == "/v1/messages"


def test_anthropic_messages_streamed(anthropic_client: Anthropic, https: Https, model: str) -> None:
    with anthropic_client.messages.stream(model=model, messages=MESSAGES, max_tokens=16) as stream:
        said = "".join(stream.text_stream)
        whole = stream.get_final_message()
    assert said
    assert whole.usage.output_tokens > 0
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert endpoint_of(https, whole.id) == "/v1/messages"


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_anthropic_messages_take_tools_and_their_results(anthropic_client: Anthropic, model: str, stream: bool) -> None:
    asked: Any = {
        "model": model,
        "system": "Answer in one sentence.",
        "messages": CALLED,
        "max_tokens": 8,
        "tools": [{"name": "weather", "input_schema": PARAMETERS}],
    }
    if not stream:
        assert anthropic_client.messages.create(**asked).content
        return
    with anthropic_client.messages.stream(**asked) as events:
        assert events.get_final_message().content


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=["any", "named"])
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_anthropic_messages_call_a_tool_that_is_demanded(
    anthropic_client: Anthropic, https: Https, model: str, choice: Any, stream: bool
) -> None:
    weather = {"name": "weather", "input_schema": PARAMETERS}
    clock = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
    tools = [weather] if choice["type"] == "any" else [clock, weather]
    asked: Any = {"model": model, "messages": MESSAGES, "max_tokens": 128, "tools": tools, "tool_choice": choice}
    asked["extra_body"] = {"temperature": 0}
    if stream:
        with anthropic_client.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = anthropic_client.messages.create(**asked)
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert (answer.stop_reason, call.name) == ("tool_use", "weather")
    assert isinstance(call.input, dict)
    assert call.input["city"] in CITIES
    assert endpoint_of(https, answer.id) == "/v1/messages"


def test_anthropic_tokens_are_counted(anthropic_client: Anthropic, model: str) -> None:
    counted = anthropic_client.messages.count_tokens(model=model, messages=MESSAGES)
    answer = anthropic_client.messages.create(model=model, messages=MESSAGES, max_tokens=1)
    assert counted.input_tokens == answer.usage.input_tokens


@pytest.mark.parametrize(
    ("asked", "refusal", "error_type"),
    [
        ({"model": "no-such-model"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": [{"role": "user", "content": "x" * (2 << 20)}]}, anthropic.APIStatusError, "request_too_large"),
        ({"messages": [{"role": "user"}]}, anthropic.BadRequestError, "invalid_request_error"),
    ],
    ids=["model", "size", "engine"],
)
def test_anthropic_reads_refusals(
    anthropic_client: Anthropic, model: str, asked: dict[str, Any], refusal: type[Exception], error_type: str
) -> None:
    with pytest.raises(refusal) as refused:
        anthropic_client.messages.create(**{"model": model, "messages": MESSAGES, "max_tokens": 1, **asked})
    body: Any = getattr(refused.value, "body", None)
    assert (body["type"], body["error"]["type"]) == ("error", error_type)


def test_anthropic_reads_that_a_key_is_nobodys(anthropic_client: Anthropic, model: str) -> None:
    stranger = anthropic_client.with_options(api_key="sk-teemesh-of-somebody-else")
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model=model, messages=MESSAGES, max_tokens=1)
