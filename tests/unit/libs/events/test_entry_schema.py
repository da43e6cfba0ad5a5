"""The published schema of entries: one for every kind that any role may write, and none that takes anything."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from libs import jcs
from libs.events.records import Entry, EntryMalformed, parse_entry
from libs.transparency.leaf import Kind
from services.ledger.intake.issuers import KINDS_OF_ROLE
from tests.fakes.entry_schema import DOCUMENTED, SCHEMA, require_documented, require_documented_entry

SAMPLES: dict[Kind, dict[str, Any]] = {
    Kind.AMENDMENT: {"entry_id": "ab" * 32, "effect": "not_released"},
    Kind.REFUSALS: {"from": 1, "until": 3601, "counts": {"API_KEY_INVALID": 3}},
    Kind.USAGE: {"from": 1, "until": 3601, "rows": [], "without_receipt": {"TENANT_RATE_EXCEEDED": 3}},
    Kind.START: {"epoch": 1, "build": "ab" * 32, "recovered_size": 0},
    Kind.GAP: {"source": "ab" * 16, "from": 1, "to": 2},
    Kind.CONFLICT: {"issuer": "ab" * 32, "issuer_seq": 1, "logged": "cd" * 32, "refused": "ef" * 32},
    Kind.QUARANTINE: {"issuer": "ab" * 32, "issuer_seq": 1, "record_sha256": "cd" * 32, "reason": "KIND_NOT_ALLOWED"},
}


def entry(kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
    tenant = "ab" * 16 if kind.is_tenants else None
    value: dict[str, Any] = jcs.loads_object(Entry(kind, bytes(32), 1, bytes(32), tenant, body).canonical())
    return value


def test_the_schema_is_one_of_2020_12() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_every_kind_is_documented() -> None:
    assert set(Kind) == DOCUMENTED


def test_kinds_that_somebody_may_write_are_named_on_the_page() -> None:
    text = Path("docs/entries.md").read_text()
    for kind in set().union(*KINDS_OF_ROLE.values()):
        assert re.search(rf"`{kind.name.lower()}`", text), kind.name


def test_a_gap_is_of_the_stream_or_of_a_file_and_not_of_both() -> None:
    aside = {"file": "owed.log", "size": 9, "sha256": "ab" * 32, "damaged_at": 0, "records_kept": 0}
    require_documented(Kind.GAP, aside)
    less = [{name: value for name, value in aside.items() if name != left} for left in aside]
    for body in (*less, {**aside, **SAMPLES[Kind.GAP]}, {**aside, "file": "log.json"}):
        with pytest.raises(ValidationError):
            require_documented(Kind.GAP, body)


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples_are_documented(kind: Kind) -> None:
    require_documented(kind, SAMPLES[kind])
    value = entry(kind, SAMPLES[kind])
    assert require_documented_entry(jcs.dumps(value)) is kind


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_body_of_another_kind_or_with_other_members_is_not(kind: Kind) -> None:
    for other in SAMPLES:
        if other is not kind:
            with pytest.raises(ValidationError):
                require_documented(other, SAMPLES[kind])
    for name in SAMPLES[kind]:
        for body in ({**SAMPLES[kind], name: None}, {n: v for n, v in SAMPLES[kind].items() if n != name}):
            with pytest.raises(ValidationError):
                require_documented(kind, body)
    with pytest.raises(ValidationError):
        require_documented(kind, {**SAMPLES[kind], "extra": 1})


def test_what_the_reader_of_entries_refuses_is_not_documented() -> None:
    good = entry(Kind.START, SAMPLES[Kind.START])
    changes: dict[str, Any] = {"v": 2, "issuer": "ab", "issuer_seq": 0, "prev": 7, "body": [], "kind": 99}
    for name, value in changes.items():
        changed = copy.deepcopy(good)
        changed[name] = value
        with pytest.raises(ValidationError):
            require_documented_entry(jcs.dumps(changed))
        with pytest.raises(EntryMalformed):
            parse_entry(jcs.dumps(changed))


def test_only_what_lies_in_a_vault_names_its_tenant() -> None:
    for kind, tenant in ((Kind.START, "ab" * 16), (Kind.AMENDMENT, None)):
        with pytest.raises(ValidationError):
            require_documented_entry(jcs.dumps({**entry(kind, SAMPLES[kind]), "tenant": tenant}))
