"""The published schema and the reader agree: what the one refuses the other does, but for what no schema can say."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jsonschema import Draft202012Validator

from libs import jcs
from libs.policy.document import PolicyMalformed, read
from libs.policy.signatures import parse_signed, sign
from tests.unit.libs.policy import test_constraints, test_document, test_hardware
from tests.unit.libs.policy.samples import full

_DOCS = Path("docs")
SCHEMA = json.loads((_DOCS / "policy.schema.json").read_bytes())
VALIDATOR = Draft202012Validator(SCHEMA)

CANNOT_SAY = {
    "that it ends after it begins": "not_after must be later",
    "that a threshold is within its keys": "operators.threshold must be an integer from 1 to",
    "that bytes are a certificate": "must be a DER certificate|must be the DER certificate of an authority",
    "that an address is one": "has no IPv6 address between its brackets",
    "that bytes are a key": "must be a SubjectPublicKeyInfo|must be a P-384 key",
    "which roots and authorities are a vendor's": "is no vendor's published root|is no authority that the vendor",
    "that development and hardware are not mixed": "must not mix development",
    "that two entries are not about the same": (
        "vendor_roots names the same thing twice|issuer is named twice|is about the same keys as"
        "|signatures names the same thing twice|foreign_providers names the same thing twice"
    ),
    "that nothing is both allowed and revoked": "which is also allowed",
    "that reports need a root": "reports_required needs a vendor root",
    "that a tenant's models are the policy's": "is no model that the policy lists|does not list for it",
    "that a tenant's evidence is no older than everyone's": "max_evidence_age_seconds must be an integer from 1 to",
}
"""By name, what the reader refuses and the schema cannot, as the reader's message tells it."""


@pytest.fixture
def whole(draft: dict[str, Any]) -> dict[str, Any]:
    return full(draft)


def _refusal(value: Any) -> str | None:
    try:
        read(value)
    except PolicyMalformed as refusal:
        return str(refusal)
    return None


def _is_unsayable(refusal: str) -> bool:
    return any(re.search(pattern, refusal) for pattern in CANNOT_SAY.values())


def _agree(value: Any) -> None:
    refusal, valid = _refusal(value), VALIDATOR.is_valid(value)
    if refusal is None:
        assert valid, next(VALIDATOR.iter_errors(value)).message
    else:
        assert not valid or _is_unsayable(refusal), refusal


def test_the_schema_is_one_of_2020_12() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_policy_is_valid_with_every_optional_member_and_without(draft: dict[str, Any], whole: dict[str, Any]) -> None:
    for value in (draft, whole, {**draft, "version": 2, "previous": "ab" * 32}):
        assert _refusal(value) is None
        VALIDATOR.validate(value)


def test_the_sample_leaves_no_member_of_the_schema_out(whole: dict[str, Any]) -> None:
    named = {name for _, name in _members(SCHEMA["$defs"]["policy"])}
    assert named - _names(whole) <= {"fmc"} | {"attestation", "registry", "router", "broker", "agent", "job", "Genoa"}


def _names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(name for each in value.values() for name in _names(each))}
    return {name for each in value for name in _names(each)} if isinstance(value, list) else set()


def _members(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every member that the schema names, with where it stands."""
    if "$ref" in schema:
        schema = {**SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], **schema}
    for name, inner in schema.get("properties", {}).items():
        yield path, name
        yield from _members(inner, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from _members(schema[name], path)


def test_every_member_stands_in_the_table_of_the_documentation() -> None:
    text = (_DOCS / "policy.md").read_text()
    for _, name in _members(SCHEMA["$defs"]["policy"]):
        assert re.search(rf"[`.]{name}[`.]", text), name


RULES: tuple[dict[str, Any], ...] = (
    {"name": "Data"},
    {"name": "data/*/x"},
    {"name": "a" * 129},
    {"name": "agents/*"},
    {"roles": []},
    {"roles": ["operator"]},
    {"algorithm": "aes-128"},
    {"algorithm": "aes-256", "use": "sign"},
    {"algorithm": "x25519", "use": "sign"},
    {"use": "sign"},
    {"use": "lend"},
    {"rotate_after_days": 0},
    {"rotate_after_days": 3651},
    {"compose_hashes": []},
    {"compose_hashes": ["ab" * 31]},
    {"name": "ledger-vault/x", "roles": ["ledger", "kms"]},
    {"name": "ledger-resume", "roles": ["router"]},
    {"name": "ledger-resume", "roles": ["ledger"], "algorithm": "ed25519"},
    {"name": "ledger-resume", "roles": ["ledger"], "rotate_after_days": 3},
)


def _rule(changes: Mapping[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda draft: draft["key_releases"].append({"name": "data2/*", "roles": ["node"], **changes})


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"document: {name}": damage for name, (damage, _) in test_document.DAMAGES.items()},
    **{f"hardware: {name}": damage for name, (damage, _) in test_hardware.DAMAGES.items()},
    **{f"key: {changes}": _rule(changes) for changes in RULES},
    "a root under two names": lambda d: d["vendor_roots"].append({**d["vendor_roots"][0], "name": "again"}),
    "another certificate for hardware": lambda d: [root.update(development=False) for root in d["vendor_roots"]],
    "hardware beside development": lambda d: d["vendor_roots"][0].update(development=False),
    "bytes for a token key": lambda d: d["gpu"]["issuers"][0]["keys"].update(k="3000"),
    "bytes for an authority": lambda d: d["gpu"]["issuers"][0]["roots"].append("3000"),
    "the vendor's service beside development": lambda d: d["gpu"]["issuers"][0].update(
        issuer="https://nras.attestation.nvidia.com", development=False, keys={}, roots=["3000"]
    ),
    "the vendor's service with a key": lambda d: d["gpu"]["issuers"][0].update(
        issuer="https://nras.attestation.nvidia.com", development=False
    ),
    "an issuer that passes for the vendor's": lambda d: d["gpu"]["issuers"][0].update(development=False),
    "an issuer without keys": lambda d: d["gpu"]["issuers"][0].pop("keys"),
    "reports without a root": lambda d: d["vendor_roots"].pop(1),
    "brackets around no IPv6 address": lambda d: d["foreign_providers"][0].update(origin="https://[192.0.2.1]"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_the_reader_refuses_is_refused(whole: dict[str, Any], name: str) -> None:
    DAMAGES[name](whole)
    assert _refusal(whole) is not None
    _agree(whole)


@pytest.mark.parametrize("entries", [entries for entries, _ in test_constraints.DAMAGES])
def test_what_the_reader_refuses_of_constraints_is_refused(draft: dict[str, Any], entries: Any) -> None:
    _agree({**draft, "constraints": entries})


def _changed(value: Any) -> Iterator[Any]:
    """The value with one thing in it changed, in every way that is tried, at every place."""
    yield from (None, 7, "x", [], {}, True, "AB" * 32)
    match value:
        case int():
            yield from (value + 1, value - 1, -1, 0, 2**53, str(value))
        case str():
            yield from (value + "\n", value + " ", value[:-1], value.upper(), value + "é", [value])
        case list():
            yield from ([*value, *value[:1]], value[1:], [*value, None])
            for index, each in enumerate(value):
                yield from ([*value[:index], other, *value[index + 1 :]] for other in _changed(each))
        case dict():
            yield {**value, "unheard_of": 1}
            for name, each in value.items():
                yield {other: kept for other, kept in value.items() if other != name}
                yield from ({**value, name: other} for other in _changed(each))


def test_reader_and_schema_agree_on_every_change_of_everything(whole: dict[str, Any]) -> None:
    count = 0
    for changed in _changed(whole):
        _agree(changed)
        count += 1
    assert count > 2000


def test_everything_that_a_schema_cannot_say_is_met_by_a_case(
    draft: dict[str, Any], whole: dict[str, Any], operators: list[Ed25519PrivateKey]
) -> None:
    damaged = []
    for damage in DAMAGES.values():
        damaged.append(copy.deepcopy(whole))
        damage(damaged[-1])
    damaged += [{**draft, "constraints": entries} for entries, _ in test_constraints.DAMAGES]
    refusals = [refusal for value in damaged if (refusal := _refusal(value)) is not None and VALIDATOR.is_valid(value)]
    assert {name for name, pattern in CANNOT_SAY.items() if not any(re.search(pattern, each) for each in refusals)} == (
        set()
    )


def _signed(policy: dict[str, Any], keys: list[Ed25519PrivateKey]) -> dict[str, Any]:
    document = jcs.dumps(policy)
    signatures = [sign(document, key) for key in keys]
    return {
        "policy": policy,
        "signatures": [{"key": each.key.hex(), "signature": each.signature.hex()} for each in signatures],
    }


def test_the_signed_form_is_valid_with_and_without_signatures(
    draft: dict[str, Any], operators: list[Ed25519PrivateKey]
) -> None:
    for keys in ([], operators[:2]):
        VALIDATOR.validate(_signed(draft, keys))


def test_reader_and_schema_agree_on_every_change_of_a_signed_form(
    draft: dict[str, Any], operators: list[Ed25519PrivateKey]
) -> None:
    signed = _signed(draft, operators[:2])
    many = [{"key": f"{number:064x}", "signature": "00" * 64} for number in range(65)]
    tried = [{**signed, "signatures": many}, {**signed, "extra": 1}, {"policy": signed["policy"]}]
    tried += [{**signed, "signatures": other} for other in _changed(signed["signatures"])]
    for value in tried:
        refusal = _signed_refusal(value)
        assert VALIDATOR.is_valid(value) is (refusal is None) or (refusal is not None and _is_unsayable(refusal))


def _signed_refusal(value: Any) -> str | None:
    try:
        parse_signed(jcs.dumps(value))
    except PolicyMalformed as refusal:
        return str(refusal)
    return None
