"""What a worker's signature is found and checked by: the JSON as Python writes it, however the answer was sent."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs.client.worker_answers import HEAD_BYTES, MOST_VALUES, WorkerAnswer, named_in, read_whole

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_JSON: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@given(value=_JSON)
@example({"id": "one", "a": [], "b": {}, "c": [[], {}, 1e-5, -0.0, 1e22, "grüß \ud800"]})
@settings(max_examples=300, deadline=None)
def test_an_answer_counts_as_it_was_sent_and_as_python_writes_it(value: Any) -> None:
    for sent in (
        json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"),
        json.dumps(value, indent=1).encode(),
    ):
        assert read_whole(sent).hashes == {sha256(sent), sha256(json.dumps(json.loads(sent)).encode())}


@pytest.mark.parametrize(
    ("body", "answer_id"),
    [(b'{"id":"one"}', "one"), (b'{"choices":[{"id":"of a call"}],"id":"one"}', "one"), (b"[]", None), (b"{}", None)],
)
def test_its_id_is_its_own(body: bytes, answer_id: str | None) -> None:
    assert read_whole(body).answer_id == answer_id


@pytest.mark.parametrize("body", [b'{"id":"one"', b"[" * 100_000, b"\xff", b'{"id":"one","n":' + b"1" * 5000 + b"}"])
def test_what_is_no_json_has_no_id(body: bytes) -> None:
    assert read_whole(body) == WorkerAnswer(None, frozenset({sha256(body)}))


def test_one_of_too_many_values_counts_only_as_it_was_sent_and_is_not_read() -> None:
    body = b'{"id":"one","choices":[' + b",".join([b"[]"] * MOST_VALUES) + b"]}"
    tracemalloc.start()
    try:
        answer = read_whole(body)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert answer == WorkerAnswer("one", frozenset({sha256(body)}))


@pytest.mark.parametrize(
    ("head", "answer_id"),
    [
        (b': alive\n\ndata: {"id": "chatcmpl-1", "object": "x"}\n\ndata: {"id":"other"}\n\n', "chatcmpl-1"),
        (b'data: {"model":"\\"id\\":\\"said\\"","id":"one"}\n\n', "one"),
        (b'data: {"id":"a/../b"}\n\n', None),
        (b"x" * HEAD_BYTES + b'data: {"id":"late"}\n\n', None),
    ],
)
def test_a_streams_id_is_found_in_its_beginning(head: bytes, answer_id: str | None) -> None:
    assert named_in(head) == answer_id
