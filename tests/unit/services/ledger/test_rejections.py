"""Refusals: kept with their reason, told to whom they are proven to be about, and to nobody else."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from services.ledger.intake.rejections import NAME, Reason, Refusal, Rejections
from services.ledger.storage import records_log
from services.ledger.storage.damage import LogDamaged

ISSUER = b"\x11" * 32


def refusal(number: int, reason: Reason = Reason.KIND_NOT_ALLOWED) -> Refusal:
    return Refusal(9, reason, "why", b"record %d" % number, ISSUER, number)


def test_a_refusal_is_remembered_over_a_restart(tmp_path: Path) -> None:
    rejections = Rejections(tmp_path)
    rejections.keep([refusal(3), refusal(5, Reason.BODY_NOT_OPENED)])
    rejections.close()
    again = Rejections(tmp_path)
    assert again.of(ISSUER, 1) == [(3, Reason.KIND_NOT_ALLOWED), (5, Reason.BODY_NOT_OPENED)]
    assert again.of(ISSUER, 4) == [(5, Reason.BODY_NOT_OPENED)]
    assert again.has(ISSUER, 3)
    assert not again.of(b"\x22" * 32, 1)
    again.close()


def test_what_nobody_signed_is_kept_and_told_to_nobody(tmp_path: Path) -> None:
    rejections = Rejections(tmp_path)
    rejections.keep([refusal(3, Reason.SIGNATURE_INVALID)])
    rejections.close()
    again = Rejections(tmp_path)
    assert again.of(ISSUER, 1) == []
    again.close()
    (record,) = records_log.read_end(tmp_path / NAME, records_log.QUARANTINE).records
    assert record == (9).to_bytes(8, "big") + int(Reason.SIGNATURE_INVALID).to_bytes(2, "big") + b"record 3"


def test_damage_in_the_quarantine_is_found(tmp_path: Path) -> None:
    rejections = Rejections(tmp_path)
    rejections.keep([refusal(1)])
    rejections.keep([refusal(2)])
    rejections.close()
    data = bytearray((tmp_path / NAME).read_bytes())
    data[20] ^= 1
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(LogDamaged):
        Rejections(tmp_path)


def test_torn_write_of_a_message_that_holds_a_whole_record_is_cut(tmp_path: Path) -> None:
    """Anyone may send what is refused, and choose its bytes."""
    rejections = Rejections(tmp_path)
    rejections.keep([refusal(1)])
    path = tmp_path / NAME
    end = path.stat().st_size
    record = records_log.encode(records_log.QUARANTINE, refusal(2).stored())
    rejections.keep([Refusal(9, Reason.MESSAGE_MALFORMED, "why", record + bytes(50))])
    rejections.close()
    whole = path.read_bytes()
    for length in range(end + 1, len(whole), 7):
        path.write_bytes(whole[:length])
        Rejections(tmp_path).close()
        assert path.stat().st_size == end, length


def test_torn_write_is_cut_whatever_its_length_and_number_look_like(tmp_path: Path) -> None:
    """A length that ends with the magic's first half, and a number, which a broker may choose, that begins with its
    second one."""
    why, start = Reason.MESSAGE_MALFORMED, b"x" * 60
    number = b"QR" + (64).to_bytes(4, "big") + bytes(2)
    seeming = b"TM" + number + why.to_bytes(2, "big") + start
    message = (start + sha256(seeming).digest()).ljust(int.from_bytes(b"TM", "big") - 10)
    rejections = Rejections(tmp_path)
    rejections.keep([Refusal(int.from_bytes(number, "big"), why, "why", message)])
    rejections.close()
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-1])
    Rejections(tmp_path).close()
    assert path.stat().st_size == 0


@pytest.mark.parametrize("content", [b"", b"TMQR", b"TMQ", b"TMQ\0R", b"TMQ\0\0", b"TMTMQRTMQTMQ", b"R"])
def test_what_was_refused_is_kept_whole_and_holds_no_beginning_of_a_record(content: bytes) -> None:
    kept = records_log.quarantined(9, 2, content)
    assert records_log.QUARANTINE not in kept
    assert records_log.read_quarantined(kept) == (9, 2, content)


def test_numbers_of_reasons_are_permanent() -> None:
    assert {reason.name: reason.value for reason in Reason} == {
        "MESSAGE_MALFORMED": 1,
        "ISSUER_UNKNOWN": 2,
        "SIGNATURE_INVALID": 3,
        "KEYSET_MALFORMED": 4,
        "KEYSET_REFUSED": 5,
        "SEQUENCE_CLOSED": 6,
        "SEQUENCE_TOO_FAR": 7,
        "KIND_NOT_ALLOWED": 8,
        "VAULT_UNKNOWN": 9,
        "BODY_NOT_OPENED": 10,
        "ENTRY_MALFORMED": 11,
        "POLICY_REFUSED": 12,
        "CONFLICT": 13,
        "VAULT_ERASED": 14,
        "KEYSET_NOT_RENEWED": 15,
        "STAGE_NOT_SIGNED": 16,
    }
