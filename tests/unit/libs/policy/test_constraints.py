from __future__ import annotations

from typing import Any

import pytest

from libs.policy.constraints import VERIFIED_ONLY, TenantConstraints
from libs.policy.document import PolicyMalformed, read

TENANT = "ab" * 16


def constraints(draft: dict[str, Any], **entries: Any) -> Any:
    return read({**draft, "constraints": entries}).constraints


def test_without_the_member_verified_nodes_are_all_that_is_demanded(draft: dict[str, Any]) -> None:
    policy = read(draft)
    assert policy.constraints == VERIFIED_ONLY == constraints(draft)
    demanded = policy.constraints.of(TENANT)
    assert demanded == TenantConstraints()
    assert (demanded.verified_only, demanded.regions, demanded.tee_types, demanded.models) == (True, None, None, None)


def test_a_tenant_has_its_own_entry_whole_or_the_default(draft: dict[str, Any]) -> None:
    weights = draft["models"]["smollm2-135m"]
    found = constraints(
        draft,
        default={"regions": ["eu-1"], "max_evidence_age_seconds": 600},
        **{
            TENANT: {
                "verified_only": False,
                "hardware": {"tee_types": ["tdx"], "gpu_required": True},
                "models": {"smollm2-135m": weights},
            }
        },
    )
    assert found.of("cd" * 16) == TenantConstraints(regions=frozenset({"eu-1"}), max_evidence_age_seconds=600)
    own = found.of(TENANT)
    assert (own.verified_only, own.regions, own.tee_types, own.gpu_required) == (False, None, {"tdx"}, True)
    assert (own.models, own.max_evidence_age_seconds) == ({"smollm2-135m": frozenset(weights)}, None)


def test_an_empty_list_is_not_an_absent_one(draft: dict[str, Any]) -> None:
    empty = constraints(draft, default={"regions": [], "hardware": {"tee_types": []}, "models": {}}).default
    assert (empty.regions, empty.tee_types, empty.models) == (frozenset(), frozenset(), {})
    assert not empty.allows_model("smollm2-135m")
    assert TenantConstraints().allows_model("smollm2-135m")


DAMAGES: list[tuple[dict[str, Any], str]] = [
    ({"Default": {}}, "is not a name"),
    ({"AB" * 16: {}}, "is not a name"),
    ({"ab" * 15: {}}, "is not a name"),
    ({"default": []}, "constraints.default must be an object"),
    ({"default": {"region": ["eu-1"]}}, "constraints.default.region is not a known member"),
    ({"default": {"verified_only": 1}}, "verified_only must be true or false"),
    ({"default": {"regions": "eu-1"}}, "regions must be a list"),
    ({"default": {"regions": ["EU"]}}, "regions"),
    ({"default": {"regions": ["eu-1", "eu-1"]}}, "names the same thing twice"),
    ({"default": {"hardware": {"tee_types": ["nvidia-gpu"]}}}, "tee_types"),
    ({"default": {"hardware": {"gpu": True}}}, "hardware.gpu is not a known member"),
    ({"default": {"models": {"unheard-of": []}}}, "is no model that the policy lists"),
    ({"default": {"models": {"smollm2-135m": ["ee" * 32]}}}, "which the policy does not list for it"),
    ({"default": {"max_evidence_age_seconds": 0}}, "max_evidence_age_seconds"),
    ({"default": {"max_evidence_age_seconds": 3901}}, "an integer from 1 to 3900"),
]


@pytest.mark.parametrize(("entries", "message"), DAMAGES)
def test_what_could_be_misread_or_widens_the_policy_is_refused(
    draft: dict[str, Any], entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyMalformed, match=message):
        constraints(draft, **entries)
