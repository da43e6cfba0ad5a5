"""The batch message: what is signed, and that hostile bytes raise only the parser's own errors."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import MeshError
from libs.events.batches import MAX_MESSAGE_BYTES, MAX_RECORDS, BatchMalformed, encode_batch, parse_batch, verify_batch
from libs.events.kinds import Kind
from libs.events.records import Record, RecordMalformed, seal
from libs.events.vault import VaultKey

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ISSUER = b"\x07" * 32
VAULT = VaultKey(b"\x01" * 16, 3, b"\x02" * 32, "00" * 16)


def records(count: int, first_seq: int = 1) -> list[Record]:
    return [
        seal(b'{"n":%d}' % number, Kind.RECEIPT, ISSUER, number, bytes(32), VAULT)
        for number in range(first_seq, first_seq + count)
    ]


MESSAGE = encode_batch(ISSUER, 9, records(3, 9), KEY)


def test_a_batch_gives_back_its_records() -> None:
    batch = parse_batch(MESSAGE)
    verify_batch(batch, KEY.public_key())
    assert (batch.issuer, batch.first_seq, batch.last_seq) == (ISSUER, 9, 11)
    assert batch.numbered() == list(enumerate(records(3, 9), 9))


def test_a_full_batch_is_read() -> None:
    assert len(parse_batch(encode_batch(ISSUER, 1, records(MAX_RECORDS), KEY)).records) == MAX_RECORDS


def test_another_key_is_refused() -> None:
    with pytest.raises(MeshError) as refusal:
        verify_batch(parse_batch(MESSAGE), Ed25519PrivateKey.generate().public_key())
    assert refusal.value.reason == "BATCH_SIGNATURE_INVALID"


@pytest.mark.parametrize("position", range(len(MESSAGE)))
def test_no_altered_byte_verifies(position: int) -> None:
    altered = bytearray(MESSAGE)
    altered[position] ^= 0x40
    with pytest.raises(MeshError) as refusal:
        verify_batch(parse_batch(bytes(altered)), KEY.public_key())
    assert refusal.value.reason in {"BATCH_MALFORMED", "RECORD_MALFORMED", "BATCH_SIGNATURE_INVALID"}


@pytest.mark.parametrize("length", range(0, len(MESSAGE), 7))
def test_a_cut_message_is_refused(length: int) -> None:
    with pytest.raises(MeshError) as refusal:
        parse_batch(MESSAGE[:length])
    assert refusal.value.reason in {"BATCH_MALFORMED", "RECORD_MALFORMED"}


def test_more_bytes_are_refused() -> None:
    with pytest.raises(MeshError) as refusal:
        parse_batch(MESSAGE[:-64] + b"\x00" + MESSAGE[-64:])
    assert refusal.value.reason == "BATCH_MALFORMED"


def test_a_message_over_the_limit_is_refused() -> None:
    with pytest.raises(MeshError) as refusal:
        parse_batch(bytes(MAX_MESSAGE_BYTES + 1))
    assert refusal.value.reason == "BATCH_MALFORMED"


def test_sequence_numbers_do_not_wrap() -> None:
    with pytest.raises(MeshError) as refusal:
        parse_batch(MESSAGE[:8] + b"\xff" * 8 + MESSAGE[16:])
    assert refusal.value.reason == "BATCH_MALFORMED"


@settings(max_examples=300)
@given(st.binary(max_size=600) | st.binary(max_size=500).map(lambda tail: MESSAGE[:48] + tail))
def test_hostile_bytes_raise_only_the_parsers_errors(data: bytes) -> None:
    with suppress(BatchMalformed, RecordMalformed):
        parse_batch(data)
