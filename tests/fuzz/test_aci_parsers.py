"""Hostile bytes raise only the parsers' own errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs
from libs.aci import keyset as keysets
from libs.aci import receipt as receipts
from libs.aci import report as reports
from libs.aci import session as sessions
from libs.aci import sse
from libs.aci.endpoints import DEFINED, Endpoint
from libs.aci.report import SourceProvenance
from libs.errors import MeshError
from services.router import prompt as prompts
from services.router.errors import InvalidRequest
from services.router.exchange.withholding import StreamedResponse
from tests.unit.libs.aci.documents import RECEIPT_KEY, SESSION, keyset, receipt

Parser = Callable[[bytes], object]

SIGNED = receipts.sign(receipt(), RECEIPT_KEY)
REPORT = reports.assemble(keyset(), nonce=None, tee_type="tdx", provenance=SourceProvenance(), evidence={"quote": "00"})
KEYSET = jcs.dumps(keyset().document())
PROMPT = b'{"model":"m","stream":true,"provider":{"aci_verified":true,"aci_session_ids":["' + b"ab" * 32 + b'"]}}'


def _prompt(endpoint: Endpoint, data: bytes) -> object:
    """No refusal of a prompt is any but the one that its client may read."""
    try:
        return prompts.parse(data, endpoint)
    except InvalidRequest:
        return None
    except MeshError as error:
        raise AssertionError("refused otherwise") from error


PARSERS: dict[str, tuple[Parser, bytes]] = {
    "receipt": (lambda data: receipts.verify_receipt(data, keyset()), SIGNED),
    "report": (reports.parse, REPORT),
    "session": (lambda data: sessions.verify_session(data, sessions.session_id(data)), SESSION),
    "list entry": (sessions.abbreviated, SESSION),
    "keyset": (lambda data: keysets.parse(jcs.loads_object(data)), KEYSET),
    **{f"prompt of {endpoint.path}": (partial(_prompt, endpoint), PROMPT) for endpoint in DEFINED},
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def refused_or_read(parse: Parser, data: bytes) -> None:
    with contextlib.suppress(MeshError):
        parse(data)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, member in list(items) for place in [(value, key), *places(member)]]


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    refused_or_read(PARSERS[name][0], data)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_genuine_document_with_one_member_replaced(name: str, data: st.DataObject) -> None:
    parse, genuine = PARSERS[name]
    value = json.loads(genuine)
    container, key = data.draw(st.sampled_from(places(value)))
    container[key] = data.draw(JSON)
    refused_or_read(parse, json.dumps(value).encode())


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_genuine_document_with_one_byte_changed(name: str, data: st.DataObject) -> None:
    parse, genuine = PARSERS[name]
    position = data.draw(st.integers(0, len(genuine) - 1))
    changed = bytearray(genuine)
    changed[position] = data.draw(st.integers(0, 255))
    refused_or_read(parse, bytes(changed))


@given(
    st.sampled_from([endpoint for endpoint in DEFINED if endpoint.streams]),
    st.lists(st.binary(max_size=60) | JSON.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n")),
)
def test_any_stream_is_carried_unchanged(endpoint: Endpoint, chunks: list[bytes]) -> None:
    response = StreamedResponse(endpoint)
    released = b""
    for chunk in chunks:
        events = response.feed(chunk)
        released += response.release(events, response.read(events))
    assert released + response.withheld == b"".join(chunks)
    response.complete()
    assert (released + response.withheld).removesuffix(sse.DONE) == b"".join(chunks).removesuffix(sse.DONE)
