"""The entry that introduces an issuer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.events.keyset import Keyset, PreviousIssuer, parse_keyset
from libs.transparency.chain import issuer_id

EVIDENCE = jcs.dumps({"claims": {"log_key": "00"}, "v": 1})
KEYSET = Keyset(b"spki", b"\x01" * 16, b"certificate", EVIDENCE, {"report": 1}, PreviousIssuer(b"\x02" * 32, 9))


@pytest.mark.parametrize("keyset", [KEYSET, replace(KEYSET, report=None, previous=None)])
def test_a_keyset_survives_its_body(keyset: Keyset) -> None:
    assert parse_keyset(jcs.loads_object(jcs.dumps(keyset.body()))) == keyset
    assert keyset.issuer == issuer_id(b"spki", b"\x01" * 16)


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"spki": "AB"},
        {"spki": None},
        {"boot": "01"},
        {"evidence": "00"},
        {"report": []},
        {"previous": {}},
        {"previous": {"issuer": "02" * 32, "last_seq": 0}},
        {"previous": {"issuer": "02" * 31, "last_seq": 1}},
    ],
)
def test_what_is_no_keyset_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(MeshError) as refusal:
        parse_keyset({**KEYSET.body(), **change})
    assert refusal.value.reason == "KEYSET_MALFORMED"
