"""Which members a body may have, at every endpoint, and how much they may ask."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci import endpoints
from libs.aci.endpoints import Endpoint
from services.node.api.kinds import MemberRefused
from services.node.asked import CacheSaltRefused, TooMuchAsked, read_body
from services.node.members import BESIDE_SAMPLING, KNOWN, SAMPLING, UNTOLD
from services.node.questions import question
from services.node.refused import BodyRefused

CHOOSING = [
    "add_special_tokens",
    "allowed_token_ids",
    "cache_prompt",
    "chat_template",
    "chat_template_kwargs",
    "container",
    "dry_penalty_last_n",
    "extra_body",
    "grammar",
    "guided_grammar",
    "id_slot",
    "json_schema",
    "kv_transfer_params",
    "lora",
    "mcp_servers",
    "mm_processor_kwargs",
    "n_cache_reuse",
    "n_keep",
    "n_predict",
    "n_probs",
    "priority",
    "prompt_logprobs",
    "repeat_last_n",
    "request_id",
    "return_progress",
    "return_tokens_as_token_ids",
    "samplers",
    "slot_id",
    "truncate_prompt_tokens",
    "vllm_xargs",
    "",
    "CACHE_PROMPT",
    "Model",
    "\ud800",
    "x" * 100_000,
]

every_endpoint = pytest.mark.parametrize("endpoint", endpoints.DEFINED, ids=lambda endpoint: endpoint.path)


def read(endpoint: Endpoint, **members: Any) -> None:
    read_body(json.dumps(question(endpoint, "m") | members).encode(), frozenset({"m"}), endpoint)


@every_endpoint
@pytest.mark.parametrize("value", [True, None], ids=["set", "null"])
@pytest.mark.parametrize("name", CHOOSING, ids=lambda name: ascii(name)[:24])
def test_a_member_that_is_not_known_is_refused_by_name(endpoint: Endpoint, name: str, value: object) -> None:
    with pytest.raises(MemberRefused) as refused:
        read(endpoint, **{name: value})
    assert ascii(name[:64]) in str(refused.value)
    assert len(str(refused.value)) < 200


@every_endpoint
def test_a_salt_is_still_refused_as_one(endpoint: Endpoint) -> None:
    with pytest.raises(CacheSaltRefused):
        read(endpoint, cache_salt="s")


@every_endpoint
def test_what_the_node_itself_asks_is_known(endpoint: Endpoint) -> None:
    assert question(endpoint, "m").keys() <= KNOWN[endpoint]


def test_every_endpoint_that_is_served_has_its_members() -> None:
    assert KNOWN.keys() == set(endpoints.DEFINED)


def test_of_every_member_it_was_decided_whether_receipts_name_it() -> None:
    assert frozenset[str]().union(*KNOWN.values()) == SAMPLING | BESIDE_SAMPLING
    assert not SAMPLING & BESIDE_SAMPLING


@every_endpoint
def test_what_is_said_of_a_cache_is_taken_where_its_api_has_it_and_no_engine_is_told(endpoint: Endpoint) -> None:
    openais, anthropics = {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}, {"cache_control"}
    taken = {
        endpoints.CHAT: openais,
        endpoints.RESPONSES: openais,
        endpoints.MESSAGES: anthropics,
        endpoints.COUNT_TOKENS: anthropics,
    }.get(endpoint, set())
    body = json.dumps(question(endpoint, "m")).encode()
    for name in UNTOLD:
        said = body[:-1] + b',"%s":"of another tenant"}' % name.encode()
        if name in taken:
            asked = read_body(said, frozenset({"m"}), endpoint)
            assert json.loads(asked.told) == json.loads(body)
        else:
            with pytest.raises(MemberRefused, match=name):
                read_body(said, frozenset({"m"}), endpoint)


def test_what_is_left_of_a_body_stays_as_it_was_written() -> None:
    body = (
        '{"model":"m","prompt_cache_key":"k","temperature":0.70,"seed":1e0,'
        '"messages":[{"role":"user","content":"ü\\ud800"}]}'
    )
    told = read_body(body.encode(), frozenset({"m"}), endpoints.CHAT).told
    assert told == body.replace('"prompt_cache_key":"k",', "").encode()


@every_endpoint
def test_a_body_of_which_nothing_is_left_out_is_told_byte_for_byte(endpoint: Endpoint) -> None:
    body = b" " + json.dumps(question(endpoint, "m"), indent=3).encode() + b"\n"
    assert read_body(body, frozenset({"m"}), endpoint).told is body


@pytest.mark.parametrize(
    ("endpoint", "name", "most"),
    [
        (endpoints.CHAT, "n", 128),
        (endpoints.CHAT, "top_logprobs", 20),
        (endpoints.COMPLETIONS, "best_of", 20),
        (endpoints.COMPLETIONS, "logprobs", 5),
        (endpoints.RESPONSES, "top_logprobs", 20),
    ],
)
def test_what_sizes_the_engines_work_is_a_whole_number_within_its_bound(
    endpoint: Endpoint, name: str, most: int
) -> None:
    for fits in (None, 0, 1, most):
        read(endpoint, **{name: fits})
    beyond: object
    for beyond in (most + 1, 10**6, 10**5000, -1, 1.0, 1e6, str(most), [1], {}):
        with pytest.raises(TooMuchAsked, match=name):
            read_body(b'{"model":"m","%s":%s}' % (name.encode(), _json(beyond)), frozenset({"m"}), endpoint)


def _json(value: object) -> bytes:
    # `str` of an integer has a bound of its own.
    return b"1" + b"0" * 5000 if value == 10**5000 else json.dumps(value).encode()


@pytest.mark.parametrize("logprobs", [0, 1, True, False, "1"])
@pytest.mark.parametrize("echo", [True, 1, "true", "false", 0, {}])
def test_a_prompt_is_not_echoed_with_its_probabilities(echo: object, logprobs: object) -> None:
    """To an engine that is `prompt_logprobs`: gigabytes for a long prompt. It reads texts and numbers as true."""
    with pytest.raises(TooMuchAsked, match="echo"):
        read(endpoints.COMPLETIONS, prompt="a", echo=echo, logprobs=logprobs)


def test_a_prompt_is_echoed_and_answers_have_their_probabilities() -> None:
    for echo, logprobs in ((True, None), (False, 5), (None, 5)):
        read(endpoints.COMPLETIONS, prompt="a", echo=echo, logprobs=logprobs)
    read(endpoints.COMPLETIONS, prompt="a", echo=True)


def test_chats_logprobs_is_no_number() -> None:
    read(endpoints.CHAT, logprobs=True, top_logprobs=20)


@pytest.mark.parametrize(
    ("endpoint", "name", "longest"),
    [(endpoints.CHAT, "stop", 64), (endpoints.MESSAGES, "stop_sequences", 64)],
)
def test_what_is_sought_at_every_token_has_so_many_entries(endpoint: Endpoint, name: str, longest: int) -> None:
    read(endpoint, **{name: ["a"] * longest})
    with pytest.raises(TooMuchAsked, match=name):
        read(endpoint, **{name: ["a"] * (longest + 1)})


def test_biases_have_so_many_entries_in_either_form() -> None:
    read(endpoints.CHAT, logit_bias={str(token): 1 for token in range(1024)})
    for biases in ({str(token): 1 for token in range(1025)}, [[token, 1] for token in range(1025)]):
        with pytest.raises(TooMuchAsked):
            read(endpoints.CHAT, logit_bias=biases)


def test_a_refusal_says_what_it_is() -> None:
    assert [kind.reason for kind in (MemberRefused, TooMuchAsked)] == ["MEMBER_REFUSED", "TOO_MUCH_ASKED"]
    assert all(issubclass(kind, BodyRefused) and kind.status == 400 for kind in (MemberRefused, TooMuchAsked))
