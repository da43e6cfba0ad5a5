"""Resume tokens: made, read, refused."""

from __future__ import annotations

import pytest

from libs.transparency import resume
from libs.transparency.chain import chain_start, log_id
from libs.transparency.resume import LogDiverged, Position, ResumeTokenInvalid

LOG = log_id("example.org/ledger/1")
POSITION = Position(77, chain_start("example.org/ledger/1"))
TOKEN = resume.seal(POSITION, log_id=LOG, key_epoch=3, key=b"k" * 32)


def test_token_reads_back() -> None:
    assert len(TOKEN) == 69
    assert resume.key_epoch(TOKEN) == 3
    assert resume.verify(TOKEN, log_id=LOG, key=b"k" * 32) == POSITION


def test_changed_byte_anywhere_is_refused() -> None:
    for at in range(len(TOKEN)):
        with pytest.raises(ResumeTokenInvalid):
            resume.verify(TOKEN[:at] + bytes([TOKEN[at] ^ 1]) + TOKEN[at + 1 :], log_id=LOG, key=b"k" * 32)


def test_other_key_log_and_length_are_refused() -> None:
    for token, log, key in ((TOKEN, LOG, b"x" * 32), (TOKEN, log_id("other"), b"k" * 32), (TOKEN[:-1], LOG, b"k" * 32)):
        with pytest.raises(ResumeTokenInvalid):
            resume.verify(token, log_id=log, key=key)


def test_rolled_back_and_rewritten_logs_are_noticed() -> None:
    resume.verify_extends(POSITION, size=77, chain=POSITION.chain)
    with pytest.raises(LogDiverged, match="has 76 leaves"):
        resume.verify_extends(POSITION, size=76, chain=None)
    with pytest.raises(LogDiverged, match="another history"):
        resume.verify_extends(POSITION, size=80, chain=bytes(32))
