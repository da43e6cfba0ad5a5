"""Entries, vaults and records: the published vector, and every way to be refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.events.kinds import Kind
from libs.events.records import (
    MAX_ENTRY_BYTES,
    Entry,
    Opened,
    Record,
    commit_to,
    open_record,
    parse_entry,
    parse_header,
    seal,
    verify_entry,
)
from libs.events.vault import VaultKey, derive_tag_key, derive_vault_key, leaf_tag, vault_epoch
from libs.transparency.chain import issuer_id

TENANT = "ab" * 16
VAULT_ID = b"\x55" * 16
SALT = b"\x33" * 32
ISSUER = issuer_id(b"\x30" * 44, b"\x01" * 16)
KEY = derive_vault_key(b"\x44" * 32, b"\x22" * 32, VAULT_ID, 1)
VAULT = VaultKey(VAULT_ID, 1, KEY, TENANT)


def sealed() -> Record:
    return seal(b'{"v":1}', Kind.RECEIPT, ISSUER, 7, SALT, VAULT)


def entry(**changes: object) -> Entry:
    return replace(Entry(Kind.RECEIPT, ISSUER, 7, bytes(32), TENANT, {"a": 1}), **changes)  # type: ignore[arg-type]


def test_the_published_vector_is_reproduced() -> None:
    assert ISSUER.hex() == "f362a6338ea6e401a3dfa38cfc79d7b652701cc2823a153743a1ea62e42abb00"
    assert KEY.hex() == "98af171d19bdf935c51e9bdf1b08ed2dba65b0c9703c4db5b8ff0cb4455390a8"
    tag_key = derive_tag_key(b"\x22" * 32, VAULT_ID)
    assert tag_key.hex() == "33eabb778b889de45a37d893d6cc6d8cc1fd72bf5782446fa368a709e8791678"
    assert leaf_tag(tag_key, 1).hex() == "135206c2872b5114a69ec47742d9a660"
    record = sealed()
    assert record.header.commitment.hex() == "b3507bee86730499f87999ee332af16bb48a8691e87e445e3caec2ed39614a40"
    assert record.body.hex() == (
        "81ae3df88577b1190ac2978f4384c60dca07dad5dd4639b64b10a4e904fc1e17516362cc07b44d92fe41a9937bed0f1fd296241d991055"
    )


def test_a_sealed_record_opens_to_what_was_sealed() -> None:
    assert open_record(sealed(), ISSUER, 7, VAULT) == Opened(SALT, b'{"v":1}')


def test_a_public_record_lies_open() -> None:
    record = seal(b"{}", Kind.POLICY, ISSUER, 1, SALT, None)
    assert record.body == SALT + b"{}"
    assert open_record(record, ISSUER, 1, None).canonical == b"{}"


@pytest.mark.parametrize("position", range(55))
def test_every_altered_body_byte_is_refused(position: int) -> None:
    record = sealed()
    body = bytearray(record.body)
    body[position] ^= 1
    with pytest.raises(MeshError) as refusal:
        open_record(replace(record, body=bytes(body)), ISSUER, 7, VAULT)
    assert refusal.value.reason == "RECORD_NOT_OPENED"


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": Kind.USAGE},
        {"commitment": bytes(32)},
        {"vault_epoch": 2},
        {"vault_id": b"\x56" * 16},
        {"body_length": 54},
    ],
)
def test_every_altered_header_field_is_refused(changes: dict[str, object]) -> None:
    record = sealed()
    header = replace(record.header, **changes)  # type: ignore[arg-type]
    with pytest.raises(MeshError) as refusal:
        open_record(replace(record, header=header), ISSUER, 7, VAULT)
    assert refusal.value.reason == "RECORD_NOT_OPENED"


@pytest.mark.parametrize(("issuer", "issuer_seq"), [(ISSUER, 8), (bytes(32), 7)])
def test_a_record_moved_to_another_place_is_refused(issuer: bytes, issuer_seq: int) -> None:
    with pytest.raises(MeshError) as refusal:
        open_record(sealed(), issuer, issuer_seq, VAULT)
    assert refusal.value.reason == "RECORD_NOT_OPENED"


def test_a_public_body_that_is_not_committed_to_is_refused() -> None:
    record = seal(b"{}", Kind.POLICY, ISSUER, 1, SALT, None)
    with pytest.raises(MeshError) as refusal:
        open_record(replace(record, body=SALT + b"[]"), ISSUER, 1, None)
    assert refusal.value.reason == "COMMITMENT_MISMATCH"


def test_an_entry_survives_its_canonical_form() -> None:
    assert parse_entry(entry().canonical()) == entry()


def test_an_entry_that_is_too_large_is_refused() -> None:
    with pytest.raises(MeshError) as refusal:
        entry(body={"a": "x" * MAX_ENTRY_BYTES}).canonical()
    assert refusal.value.reason == "ENTRY_TOO_LARGE"


def test_an_entry_that_the_ledger_would_not_read_is_not_made() -> None:
    with pytest.raises(MeshError) as refusal:
        entry(body={"a": 1.5}).canonical()
    assert refusal.value.reason == "JSON_MALFORMED"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": {"__proto__": 1}}, "JSON_MALFORMED"),
        ({"body": {"a": 2**53}}, "JSON_MALFORMED"),
        ({"body": {"a": "\ud800"}}, "JSON_MALFORMED"),
        ({"issuer_seq": 0}, "ENTRY_MALFORMED"),
        ({"previous": bytes(31)}, "ENTRY_MALFORMED"),
        ({"issuer": bytes(33)}, "ENTRY_MALFORMED"),
        ({"tenant": ""}, "ENTRY_MALFORMED"),
    ],
)
def test_an_entry_that_could_not_be_parsed_is_not_made(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MeshError) as refusal:
        replace(entry(), **changes).canonical()
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"kind": 99},
        {"kind": "1"},
        {"issuer": "AB" * 32},
        {"issuer": "zz" * 32},
        {"prev": "ab"},
        {"issuer_seq": 0},
        {"issuer_seq": True},
        {"tenant": ""},
        {"tenant": 1},
        {"body": []},
        {"more": 1},
    ],
)
def test_what_is_no_entry_is_refused(changes: dict[str, object]) -> None:
    value = {**jcs.loads_object(entry().canonical()), **changes}
    with pytest.raises(MeshError) as refusal:
        parse_entry(jcs.dumps(value))
    assert refusal.value.reason == "ENTRY_MALFORMED"


@pytest.mark.parametrize(
    ("canonical", "other"),
    [(b"}", b"} "), (b'"v":1', b'"v": 1'), (b'"a":1', b'"a":1,"a":1'), (b'"v":1', b'"v":1,"v":1')],
)
def test_an_entry_in_another_form_is_refused(canonical: bytes, other: bytes) -> None:
    said = entry().canonical()
    assert canonical in said
    with pytest.raises(MeshError) as refusal:
        parse_entry(said.replace(canonical, other))
    assert refusal.value.reason == "ENTRY_MALFORMED"


def test_an_entry_is_an_object() -> None:
    with pytest.raises(MeshError) as refusal:
        parse_entry(b"[]")
    assert refusal.value.reason == "ENTRY_MALFORMED"


def test_an_entry_must_say_what_its_record_says() -> None:
    canonical = entry().canonical()
    header = seal(canonical, Kind.RECEIPT, ISSUER, 7, SALT, VAULT).header
    assert verify_entry(Opened(SALT, canonical), header, ISSUER, 7, TENANT) == entry()
    for place in ((bytes(32), 7, TENANT), (ISSUER, 8, TENANT), (ISSUER, 7, "cd" * 16)):
        with pytest.raises(MeshError) as refusal:
            verify_entry(Opened(SALT, canonical), header, *place)
        assert refusal.value.reason == "ENTRY_MALFORMED"


@pytest.mark.parametrize("position", [5, 6, 7, 12, 13, 14, 15])
def test_reserved_header_bytes_must_be_zero(position: int) -> None:
    header = bytearray(sealed().header.encode())
    header[position] = 1
    with pytest.raises(MeshError) as refusal:
        parse_header(bytes(header))
    assert refusal.value.reason == "RECORD_MALFORMED"


@pytest.mark.parametrize(
    "changes",
    [
        {"vault_epoch": 0},
        {"vault_id": bytes(16)},
        {"body_length": 32},
        {"body_length": 2**31},
        {"kind": Kind.POLICY},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    header = replace(sealed().header, **changes)  # type: ignore[arg-type]
    with pytest.raises(MeshError) as refusal:
        parse_header(header.encode())
    assert refusal.value.reason == "RECORD_MALFORMED"


def test_an_unknown_kind_is_refused() -> None:
    header = bytearray(sealed().header.encode())
    header[4] = 200
    with pytest.raises(MeshError) as refusal:
        parse_header(bytes(header))
    assert refusal.value.reason == "RECORD_MALFORMED"


def test_a_vault_key_never_shows_itself() -> None:
    assert KEY.hex() not in repr(VAULT)
    assert repr(KEY) not in repr(VAULT)


def test_months_are_counted_from_january_1970() -> None:
    assert vault_epoch(0) == 1
    assert vault_epoch(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) == 56 * 12 + 3
    assert vault_epoch(datetime(2026, 3, 1, tzinfo=UTC).timestamp() - 1) == 56 * 12 + 2


def test_the_commitment_needs_the_salt() -> None:
    assert commit_to(bytes(32), b"{}") != commit_to(SALT, b"{}")
