from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from libs.policy.comparison import Effect, compare
from libs.policy.document import Policy, PolicyMalformed, read
from tests.unit.libs.policy.samples import full

Change = Callable[[dict[str, Any]], object]
ALLOWS, WITHDRAWS, CHANGES = Effect.ALLOWS, Effect.WITHDRAWS, Effect.CHANGES


@pytest.fixture
def whole(draft: dict[str, Any]) -> dict[str, Any]:
    return full(draft)


def _both(draft: dict[str, Any], change: Change) -> tuple[Policy, Policy]:
    changed = copy.deepcopy(draft)
    change(changed)
    return read(draft), read(changed)


def _measurement(draft: dict[str, Any], role: str, **members: str) -> dict[str, str]:
    measurement: dict[str, str] = draft["roles"][role]["measurements"][0]
    return {**measurement, **members}


CASES: dict[str, tuple[Change, str, Effect, str]] = {
    "another compose": (
        lambda d: d["roles"]["kms"]["measurements"].append(_measurement(d, "kms", compose_hash="ee" * 32)),
        "roles.kms.measurements",
        ALLOWS,
        "code: compose " + "ee" * 32,
    ),
    "no code for a role": (
        lambda d: d["roles"]["kms"].update(measurements=[]),
        "roles.kms.measurements",
        WITHDRAWS,
        "code: compose ",
    ),
    "a foreign provider": (
        lambda d: d["foreign_providers"].pop(0),
        'foreign_providers."other-mesh"',
        WITHDRAWS,
        "prompts to the foreign provider (",
    ),
    "other code of one": (
        lambda d: d["foreign_providers"][0].update(measurements=[]),
        'foreign_providers."other-mesh".measurements',
        WITHDRAWS,
        "its code: compose ",
    ),
    "less of its sessions": (
        lambda d: d["foreign_providers"][0].update(session_claims=[]),
        'foreign_providers."other-mesh".session_claims',
        ALLOWS,
        "its sessions without gpu_attested",
    ),
    "a tenant of one": (
        lambda d: d["foreign_providers"][2].update(tenants=[]),
        'foreign_providers."commercial".tenants',
        WITHDRAWS,
        "unverified prompts of tenant " + "ab" * 16,
    ),
    "another model of one": (
        lambda d: d["foreign_providers"][2].update(models={"here": "elsewhere"}),
        'foreign_providers."commercial".models.here',
        CHANGES,
        "here: elsewhere, was there",
    ),
    "a GPU": (
        lambda d: d["roles"]["kms"].update(gpu_required=True),
        "roles.kms.gpu_required",
        WITHDRAWS,
        "needs a GPU",
    ),
    "no rule of its own": (
        lambda d: d["roles"]["node"].pop("tcb"),
        "roles.node.tcb",
        ALLOWS,
        "rule of its own about patch levels (grace_seconds",
    ),
    "a role": (lambda d: d["roles"].pop("kms"), "roles.kms", CHANGES, "stands among the roles: none, was yes"),
    "weights": (
        lambda d: d["models"]["smollm2-135m"].append("ee" * 32),
        'models."smollm2-135m"',
        ALLOWS,
        "weights " + "ee" * 32,
    ),
    "a model": (
        lambda d: (d["models"].clear(), d["constraints"].clear()),
        'models."smollm2-135m"',
        WITHDRAWS,
        "weights ",
    ),
    "a key": (
        lambda d: d["key_releases"].append({"name": "new/key", "roles": ["node"], "use": "hold"}),
        'key_releases."new/key"',
        ALLOWS,
        "use of the key (name new/key; roles node; use hold)",
    ),
    "no key": (lambda d: d["key_releases"].pop(0), 'key_releases."ledger-keyring"', WITHDRAWS, "use of the key ("),
    "a key for another role": (
        lambda d: d["key_releases"][2]["roles"].append("router"),
        'key_releases."models/smollm2-135m".roles',
        ALLOWS,
        "use of the key by role router",
    ),
    "a key for composes alone": (
        lambda d: d["key_releases"][2].update(compose_hashes=["ee" * 32]),
        'key_releases."models/smollm2-135m".compose_hashes',
        WITHDRAWS,
        "use of the key by composes: " + "ee" * 32 + " alone, were any",
    ),
    "a threshold": (
        lambda d: d["operators"].update(threshold=3),
        "operators.threshold",
        CHANGES,
        "operators who must sign: 3, was 2",
    ),
    "an operator": (
        lambda d: d["operators"]["keys"].append("ee" * 32),
        "operators.keys",
        CHANGES,
        "operator " + "ee" * 32 + ": new",
    ),
    "its end": (lambda d: d.update(not_after=d["not_after"] + 1), "not_after", CHANGES, "ceases to hold"),
    "old evidence": (
        lambda d: d.update(evidence_max_age_seconds=3901),
        "evidence_max_age_seconds",
        ALLOWS,
        "age of evidence, s: 3901, was 3900",
    ),
    "a status": (
        lambda d: d["tcb"]["statuses"].append("OutOfDate"),
        "tcb.statuses",
        ALLOWS,
        "machines with TCB status",
    ),
    "an advisory": (
        lambda d: d["tcb"]["refused_advisories"].append("INTEL-SA-9"),
        "tcb.refused_advisories",
        WITHDRAWS,
        "machines subject to INTEL-SA-9",
    ),
    "an evaluation number": (
        lambda d: d["tcb"].update(minimum_evaluation_number=18),
        "tcb.minimum_evaluation_number",
        WITHDRAWS,
        "least TCB evaluation number: 18",
    ),
    "a list of machines": (
        lambda d: d["devices"].update(allowed=["ee" * 32], allowed_families=[]),
        "devices.allowed",
        WITHDRAWS,
        "machines: " + "ee" * 32 + " alone, were any",
    ),
    "a revoked machine": (
        lambda d: d["devices"]["revoked"].append("ee" * 32),
        "devices.revoked",
        WITHDRAWS,
        "machine " + "ee" * 32,
    ),
    "a longer retention": (
        lambda d: d.update(retention_months=36),
        "retention_months",
        CHANGES,
        "months that tenants' entries are kept: 36, was 24",
    ),
    "no retention": (
        lambda d: d.pop("retention_months"),
        "retention_months",
        CHANGES,
        "months that tenants' entries are kept: none, was 24",
    ),
    "a lifted revocation": (
        lambda d: d["lifted_revocations"].append("ee" * 32),
        "lifted_revocations",
        ALLOWS,
        "what is revoked by " + "ee" * 32,
    ),
    "a revocation that counts again": (
        lambda d: d["lifted_revocations"].clear(),
        "lifted_revocations",
        WITHDRAWS,
        "what is revoked by ",
    ),
    "any GPU": (lambda d: d["gpu"].update(allowed_ueids=[]), "gpu.allowed_ueids", ALLOWS, "GPUs: any, were 12"),
    "another region": (
        lambda d: d["constraints"]["default"]["regions"].append("us-1"),
        'constraints."default".regions',
        ALLOWS,
        "nodes in regions: us-1",
    ),
    "any region": (
        lambda d: d["constraints"]["default"].pop("regions"),
        'constraints."default".regions',
        ALLOWS,
        "nodes in regions: any, were eu-1, eu-2",
    ),
    "no region": (
        lambda d: d["constraints"]["ab" * 16].update(regions=[]),
        f'constraints."{"ab" * 16}".regions',
        WITHDRAWS,
        "nodes in regions: eu-1",
    ),
    "a tenant under the default": (
        lambda d: d["constraints"].pop("cd" * 16),
        f'constraints."{"cd" * 16}".models',
        ALLOWS,
        "models: any, were nothing",
    ),
    "best effort": (
        lambda d: d["constraints"]["default"].update(verified_only=False),
        'constraints."default".verified_only',
        ALLOWS,
        "verified nodes alone: no, was yes",
    ),
    "a least patch level": (
        lambda d: d["snp"]["minimum_tcb"]["Milan"].update(snp=99),
        "snp.minimum_tcb.Milan.snp",
        WITHDRAWS,
        "least patch level: 99",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_difference_is_told_with_its_effect(whole: dict[str, Any], name: str) -> None:
    change, member, effect, words = CASES[name]
    there, back = compare(*_both(whole, change)), compare(*reversed(_both(whole, change)))
    assert [(each.member, each.effect) for each in there if each.member == member] == [(member, effect)]
    assert any(each.member == member and each.words.startswith(words) for each in there)
    opposite = {ALLOWS: WITHDRAWS, WITHDRAWS: ALLOWS, CHANGES: CHANGES}[effect]
    assert (member, opposite) in [(each.member, each.effect) for each in back]


def test_the_next_version_alone_is_no_difference(whole: dict[str, Any]) -> None:
    assert compare(*_both(whole, lambda d: d.update(version=9, previous="ab" * 32))) == ()


def _changed(value: Any) -> Iterator[Any]:
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
            yield value - 1
        case str():
            yield value[:-1] + ("0" if value[-1] != "0" else "1")
            yield value + "x"
        case list():
            yield value[1:]
            yield []
            for index, each in enumerate(value):
                yield from ([*value[:index], other, *value[index + 1 :]] for other in _changed(each))
        case dict():
            for name, each in value.items():
                yield {other: kept for other, kept in value.items() if other != name}
                yield from ({**value, name: other} for other in _changed(each))


def test_no_change_that_a_reader_accepts_goes_untold(whole: dict[str, Any]) -> None:
    before, told = read(whole), 0
    for changed in _changed(whole):
        try:
            after = read(changed)
        except PolicyMalformed:
            continue
        unchained = replace(after, document=before.document, version=before.version, previous=before.previous)
        if unchained != before:
            assert compare(before, after), changed
            told += 1
    assert told > 100
