"""A collector's process that says anything raises only the mesh's own errors in its parent."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from libs import jcs
from libs.errors import MeshError
from libs.gpus.answer import Answer, Device, decode, encode
from libs.gpus.collector import require_every_device
from libs.gpus.mode import Mode, require_confidential
from libs.tee.nvidia.evidence import RawReport

_BOUND = settings(max_examples=200, deadline=None, derandomize=True)
_VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**53) | st.text(max_size=300) | st.binary(max_size=60).map(bytes.hex),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_GPU = Device("GPU-1", "0000:01:00.0", "HOPPER", RawReport(b"report", "chain"))
_ANSWER = Answer(Mode(2, 1, 0, 0, 1), "580.1.2", (_GPU,), (), {"0000:01:00.0": "7"}, {}, 0)


def _refuses_or_reads(line: bytes) -> None:
    try:
        answer = decode(line)
        require_every_device(answer)
        require_confidential(answer.mode)
    except MeshError as refusal:
        assert refusal.reason  # noqa: PT017 - both outcomes are fine; any other exception is the failure.
    else:
        assert decode(encode(answer)) == answer


def test_what_is_written_is_read() -> None:
    assert decode(encode(_ANSWER)) == _ANSWER


@_BOUND
@given(st.binary(max_size=400))
@example(b'{"detail":1,"refused":true}')
@example(b"\xff\n")
def test_any_line(line: bytes) -> None:
    _refuses_or_reads(line)


@_BOUND
@given(st.sampled_from(["mode", "driver", "gpus", "switches", "bound_gpus", "bound_switches", "errors"]), _VALUE)
def test_any_member(name: str, value: Any) -> None:
    _refuses_or_reads(json.dumps({**jcs.loads_object(encode(_ANSWER)), name: value}).encode())


@_BOUND
@given(st.sampled_from(["id", "address", "architecture", "report", "certificate_chain"]), _VALUE)
def test_any_member_of_a_device(name: str, value: Any) -> None:
    document = jcs.loads_object(encode(_ANSWER))
    _refuses_or_reads(json.dumps({**document, "gpus": [{**document["gpus"][0], name: value}]}).encode())
