"""A recorded appraisal shows, at the step that refuses, what was found and what is required."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

import pytest

from libs.errors import MeshError
from libs.tee.eventlog import colon_digest
from libs.tee.steps import SILENT, Record, Step, about, ignore
from tests.unit.libs.tee.bad_evidence.row import Benches, Row
from tests.unit.libs.tee.bad_evidence.table import TABLE, UNALTERED

# One row is a certificate with the serial number 0, of which the library still only warns.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

DECIDED_BY: dict[str, str | tuple[str, ...]] = {
    "CHALLENGE_ISSUER_NOT_TRUSTED": "key that signed the challenge, SHA-256",
    "CHALLENGE_TOO_OLD": "age of the challenge, s",
    "CHALLENGE_FROM_FUTURE": "age of the challenge, s",
    "COLLATERAL_TOO_OLD": "collateral age, s",
    "COMPOSE_HASH_MISMATCH": "SHA-256 of the app-compose text",
    "DEVICE_NOT_LISTED": "machine",
    "EVENT_LOG_DOES_NOT_REPLAY": "as signed, and as the log replays",
    "GPU_CHAIN_NOT_TRUSTED": "root of the chain, SHA-256",
    "GPU_DEBUG_ENABLED": "dbgstat",
    "GPU_DEVICE_NOT_ALLOWED": "UEID that policy lists",
    "GPU_FWID_MISMATCH": ("firmware (FWID)", "fwid-match"),
    "GPU_MODEL_NOT_ALLOWED": "model that policy lists",
    "GPU_NONCE_MISMATCH": ("nonce", "nonce-match"),
    "GPU_OVERALL_FAILED": "x-nvidia-overall-att-result",
    "GPU_REPORT_NONCE_MISMATCH": "nonce",
    "GPU_SECURE_BOOT_OFF": "secboot",
    "GPU_TOKEN_EXPIRED": "expiry, unix s",
    "GPU_TOKEN_ISSUER_NOT_TRUSTED": "issuer",
    "GPU_TOKEN_TOO_OLD": "age, s",
    "GPU_WARNING": "x-nvidia-attestation-warning",
    "MEASUREMENT_NOT_ALLOWED": "",
    "NONCE_MISMATCH": "nonce of the challenge",
    "PLATFORM_MISMATCH": "FMSPC of the TCB info, and of the quote",
    "REPORT_DATA_MISMATCH": "report data",
    "ROLE_MISMATCH": "role",
    "SNP_CHIP_MISMATCH": "chip of the report, and of the VCEK",
    "SNP_VMPL_NOT_ALLOWED": "VMPL",
    "SPKI_MISMATCH": "SHA-256 of the key",
    "TCB_ADVISORY_REFUSED": "advisories",
    "TCB_EVALUATION_TOO_LOW": "TCB evaluation number",
    "TCB_STATUS_NOT_ALLOWED": "TCB status",
    "TD_ATTRIBUTES_NOT_ALLOWED": "TD attributes",
    "TEE_TYPE_NOT_ALLOWED": "technology",
    "VENDOR_ROOT_NOT_TRUSTED": "vendor root, SHA-256",
}
"""Reason to how the name of a value ends that the refusal is about; empty: any name."""


@dataclass(frozen=True, slots=True)
class Refused:
    row: Row
    step: Step


def _recorded(row: Row, benches: Benches) -> Record:
    record = Record()
    with pytest.raises(MeshError):
        row.make(benches)(record)
    return record


def _refused(benches: Benches) -> Iterator[Refused]:
    for row in TABLE:
        if row.step is not None and row.step >= 2:
            refusing = [step for step in _recorded(row, benches).steps if step.refusal is not None]
            yield from (Refused(row, step) for step in refusing)


@pytest.fixture(scope="module")
def benches() -> Benches:
    return Benches()


@pytest.fixture(scope="module")
def refused(benches: Benches) -> list[Refused]:
    return list(_refused(benches))


def test_every_step_that_refuses_shows_values(refused: list[Refused]) -> None:
    assert len(refused) > 400
    assert [each.row.name for each in refused if not each.step.compared] == []


def test_gpu_evidence_is_refused_with_more_than_its_presence(refused: list[Refused]) -> None:
    """The digest and the presence are noted before a token is read."""
    judged = [each for each in refused if each.row.step == 10 and each.row.reason.startswith("GPU_TOKEN")]
    assert len(judged) > 20
    assert [each.row.name for each in judged if len(each.step.compared) < 3] == []


@pytest.mark.parametrize("reason", DECIDED_BY)
def test_the_value_that_decides_is_shown_beside_the_one_required(refused: list[Refused], reason: str) -> None:
    rows = [each for each in refused if each.row.reason == reason]
    assert rows
    for each in rows:
        assert [
            compared.name
            for compared in each.step.compared
            if compared.name.endswith(DECIDED_BY[reason]) and compared.found != compared.required
        ], each.row.name


@pytest.mark.parametrize("technology", UNALTERED)
def test_a_record_of_good_evidence_says_the_same_as_none(benches: Benches, technology: str) -> None:
    present = UNALTERED[technology](benches)
    record = Record()
    assert present(record) == present(SILENT)
    shown = [each for step in record.steps for each in step.compared]
    assert [each for each in shown if "cannot be read" in (each.found, each.required)] == []


def test_values_of_good_evidence_agree(benches: Benches) -> None:
    record = Record()
    UNALTERED["TDX with GPUs"](benches)(record)
    agreeing = {each.name for step in record.steps for each in step.compared if each.found == each.required}
    assert agreeing >= {
        "vendor root, SHA-256",
        "issuer of the root CRL",
        "FMSPC of the TCB info, and of the quote",
        "key that signed the challenge, SHA-256",
        "report data",
        *(f"register {imr}: as signed, and as the log replays" for imr in range(4)),
        "overall token: nonce",
        "token of GPU-1: issuer",
        "GPU-0: secboot",
        "GPU-1: dbgstat",
        "SWITCH-0: measres",
        "report 1: root of the chain, SHA-256",
        "report 1: firmware (FWID)",
        "UEIDs of the reports",
    }


def test_what_decides_never_reads_as_if_it_were_as_required(refused: list[Refused]) -> None:
    """A claim may be the word for the value that is required of it: "true" is not true."""
    claims = [each for each in refused if each.row.reason == "GPU_SECURE_BOOT_OFF"]
    assert {(each.step.compared[-1].found, each.step.compared[-1].required) for each in claims} >= {
        ('"true"', "true"),
        ("false", "true"),
    }


def test_a_log_that_does_not_replay_is_shown_with_what_it_replays_to(refused: list[Refused]) -> None:
    rows = [each for each in refused if each.row.reason == "EVENT_LOG_DOES_NOT_REPLAY"]
    for each in rows:
        last = each.step.compared[-1]
        assert last.name.startswith("register ")
        assert all(len(digest) == 96 or digest == "zero" for digest in last.required.split(", "))
        assert last.found not in last.required


def _words(value: object) -> str:
    record = Record()
    with record.step(1) as note:
        note("a value", value, None)
    return record.steps[0].compared[0].found


class _Colour(IntFlag):
    RED = 1
    BLUE = 2


def test_values_are_written_as_people_read_them() -> None:
    assert _words(bytes(48)) == "zero"
    assert _words(bytes(8)) == "00" * 8
    assert _words(colon_digest("a", b"")) == colon_digest("a", b"").hex()
    assert _words(b"") == "nothing"
    assert _words(None) == "none"
    assert _words(True) == "true"
    assert _words("true") == '"true"'
    assert _words({"b": 1, "a": 2}.keys()) == "a, b"
    assert _words([bytes(48), False]) == "[zero, false]"
    assert _words((bytes(48), False)) == "zero, false"
    assert _words(_Colour.RED | _Colour.BLUE) == "RED|BLUE"
    assert _words(_Colour(0)) == "none"


def test_a_value_that_is_made_for_a_record_is_made_for_nobody_else() -> None:
    made: list[int] = []

    def value() -> int:
        made.append(7)
        return 7

    with SILENT.step(1) as note:
        note("a value", value, value)
    assert made == []
    assert _words(value) == "7"


def test_a_value_that_cannot_be_read_refuses_nothing() -> None:
    record = Record()
    with record.step(1) as note:
        note("a value", lambda: bytes.fromhex("zz"), lambda: dict[str, str]()["a"])
    (compared,) = record.steps[0].compared
    assert (compared.found, compared.required) == ("cannot be read", "cannot be read")
    assert record.steps[0].refusal is None


@pytest.mark.parametrize(
    ("stated", "required"),
    [
        ("48", 48),
        ("true", True),
        ("none", None),
        ("zero", bytes(48)),
        ("nothing", b""),
        ("", None),
        (["a, b"], ["a", "b"]),
    ],
)
def test_a_text_does_not_read_like_a_value_of_another_kind(stated: object, required: object) -> None:
    assert _words(stated) != _words(required)


def test_what_is_spoken_of_stands_before_the_name() -> None:
    record = Record()
    with record.step(1) as note:
        about("GPU-0", about("chain", note))("status", "good", "good")
    assert [each.name for each in record.steps[0].compared] == ["chain: GPU-0: status"]
    assert about("GPU-0", ignore) is ignore
