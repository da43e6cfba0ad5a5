"""The encodings of everything that is hashed or signed (appendix A)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import ALL, Exchanges
from tests.mesh.aci.reports import Challenge

pytestmark = pytest.mark.mesh

DIGESTS = {"workload_keyset_digest", "body_hash"}


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """Every member at every depth."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield name, member
            yield from members(member)
    elif isinstance(value, list):
        for item in value:
            yield from members(item)


def require_encodings(document: Any) -> None:
    """Digests with their prefix, other hashes without one, and a canonical form for all of it."""
    for name, value in members(document):
        if name in DIGESTS:
            assert reader.is_digest(value), name
        elif name.endswith("_sha256") or name == "session_id":
            assert reader.is_hex(value, 32), name
    assert reader.parse(reader.canonical(document)) == document


@pytest.mark.parametrize("kind", ALL)
def test_c178_hashes_in_receipts_are_written_as_they_must_be(exchanges: Exchanges, kind: str) -> None:
    require_encodings(exchanges[kind].receipt)


def test_c178_hashes_in_a_session_are_written_as_they_must_be(session: dict[str, Any]) -> None:
    require_encodings(session)
    assert reader.is_digest(session["evidence"]["digest"])


def test_c179_hashes_in_a_report_are_written_as_they_must_be(challenged: Challenge) -> None:
    require_encodings(challenged.keyset)
    assert reader.is_digest(challenged.report["workload_keyset_digest"])
    assert reader.is_hex(challenged.attestation["report_data"], 32)
    image = challenged.attestation["source_provenance"]["image_digest"]
    assert image is None or reader.is_digest(image)


@pytest.mark.parametrize("name", ["ключ", "__proto__", "10"])
def test_c180_our_own_reader_refuses_names_that_readers_disagree_about(session: dict[str, Any], name: str) -> None:
    with pytest.raises(AssertionError):
        reader.canonical(session | {name: 1})


@pytest.mark.parametrize("text", ["1.0", "1e3", "NaN", "9007199254740992"])
def test_c180_our_own_reader_refuses_numbers_that_readers_disagree_about(text: str) -> None:
    with pytest.raises(AssertionError):
        reader.canonical(reader.parse(f'{{"a":{text}}}'.encode()))


def test_c180_everything_that_is_hashed_has_one_canonical_form(
    challenged: Challenge, session: dict[str, Any], exchanges: Exchanges
) -> None:
    for document in (challenged.keyset, session, exchanges["chat"].receipt, exchanges["unknown pin"].receipt):
        assert reader.parse(reader.canonical(document)) == document
