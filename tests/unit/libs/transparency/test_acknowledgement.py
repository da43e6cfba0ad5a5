"""Acknowledgements: what is signed, and every way to be refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency.acknowledgement import (
    Acknowledgement,
    AcknowledgementInvalid,
    LastSignature,
    Statement,
    acknowledge,
    verify_acknowledgement,
)
from libs.transparency.chain import log_id
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.merkle import leaf_hash

KEY = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
LOG = log_id("example.org/ledger/1")


def entry(index: int) -> tuple[bytes, bytes]:
    data = Leaf(Kind.RECEIPT, index + 1, b"\x01" * 32, b"\x02" * 16, b"\x03" * 32).data()
    return Statement(index, 1_700_000_000_000, 4, index + 1, 9, b"\x01" * 32, leaf_hash(data)).data(), data


def commit(first: int, count: int) -> list[Acknowledgement]:
    return acknowledge([entry(first + at) for at in range(count)], log_id=LOG, signer_epoch=9, key=KEY)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 100])
def test_every_statement_of_a_commit_verifies_alone(count: int) -> None:
    for at, each in enumerate(commit(1000, count)):
        assert len(each.statement) == 112
        assert len(each.path) <= 12
        assert verify_acknowledgement(each, PUBLIC, LOG).data() == entry(1000 + at)[0]


def test_largest_commit_has_paths_of_twelve() -> None:
    each = commit(0, 4096)[4095]
    assert len(each.path) == 12
    verify_acknowledgement(each, PUBLIC, LOG)


@pytest.mark.parametrize(
    "change",
    [
        {"statement": entry(12)[0]},
        {"statement": entry(11)[0][:-1]},
        {"statement": b"TMA2" + entry(11)[0][4:]},
        {"statement": replace(Statement.parse(entry(11)[0]), issuer_seq=99).data()},
        {"leaf_data": entry(12)[1]},
        {"leaf_data": entry(11)[1][:-1]},
        {"first": 9},
        {"first": 12},
        {"first": -1},
        {"count": 4},
        {"count": 0},
        {"count": 5000},
        {"path": ()},
        {"path": (bytes(32),) * 13},
        {"signer_epoch": 8},
        {"signer_epoch": -1},
        {"signature": bytes(64)},
        {"signature": b""},
    ],
    ids=str,
)
def test_changed_acknowledgement_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(AcknowledgementInvalid) as caught:
        verify_acknowledgement(replace(commit(10, 5)[1], **change), PUBLIC, LOG)
    assert caught.value.reason == "ACKNOWLEDGEMENT_INVALID"


@pytest.mark.parametrize(
    "change",
    [
        {"statement": entry(12)[0], "leaf_data": entry(12)[1]},
        {"first": 9},
        {"count": 4},
        {"path": (bytes(32),) * 3},
        {"signer_epoch": 8},
        {"signature": bytes(64)},
    ],
    ids=str,
)
def test_a_signature_that_verified_before_vouches_for_nothing_else(change: dict[str, Any]) -> None:
    last, signed = LastSignature(), commit(10, 5)
    for each in signed:
        verify_acknowledgement(each, PUBLIC, LOG, last)
    with pytest.raises(AcknowledgementInvalid):
        verify_acknowledgement(replace(signed[1], **change), PUBLIC, LOG, last)
    for key, log in ((bytes(32), LOG), (PUBLIC, log_id("other"))):
        with pytest.raises(AcknowledgementInvalid):
            verify_acknowledgement(signed[4], key, log, last)


def test_a_signature_that_was_refused_is_refused_again() -> None:
    last, [each] = LastSignature(), commit(10, 1)
    for _ in range(2):
        with pytest.raises(AcknowledgementInvalid):
            verify_acknowledgement(replace(each, signature=bytes(64)), PUBLIC, LOG, last)


def test_signed_statement_about_another_leaf_is_refused() -> None:
    statement, _ = entry(11)
    _, other = entry(12)
    [signed] = acknowledge([(statement, other)], log_id=LOG, signer_epoch=9, key=KEY)
    with pytest.raises(AcknowledgementInvalid, match="another leaf"):
        verify_acknowledgement(signed, PUBLIC, LOG)


def test_other_log_and_other_key_are_refused() -> None:
    each = commit(10, 1)[0]
    for key, log in ((PUBLIC, log_id("other")), (bytes(32), LOG), (b"short", LOG)):
        with pytest.raises(AcknowledgementInvalid):
            verify_acknowledgement(each, key, log)


def test_statements_must_be_consecutive() -> None:
    with pytest.raises(ValueError, match="consecutive"):
        acknowledge([entry(1), entry(3)], log_id=LOG, signer_epoch=1, key=KEY)
    with pytest.raises(ValueError, match="1 to 4096"):
        acknowledge([], log_id=LOG, signer_epoch=1, key=KEY)
