from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs import jcs
from libs.policy.compose import read_anchors
from libs.policy.document import Policy
from libs.policy.signatures import PolicySignaturesInsufficient, parse_signed
from services.cli.local.engine import EMBEDDED
from services.cli.local.policy import (
    LocalOperators,
    ensure_policy,
    newest_policy,
    open_operators,
    write_composes,
)
from services.cli.mesh.layout import Layout
from services.cli.mesh.roster import SERVICES
from services.cli.policy.draft import sign_policy, unsigned
from tests.unit.services.cli.conftest import Desk

NOW = 1_790_000_000
DSTACK_KMS_ROOT = bytes.fromhex("03d962450a41748021c8b02787ac36ce642ff0ae25f4c55019eb527e1112cfd764")
MODELS = {"smollm2-135m": ["77" * 32]}


@dataclass(frozen=True, slots=True)
class Local:
    """A state folder whose platform has published its reference values."""

    layout: Layout
    operators: LocalOperators
    composes: Mapping[str, bytes]

    def policy(self, models: Mapping[str, list[str]] = MODELS, now: int = NOW) -> Policy:
        return ensure_policy(self.layout, self.operators, self.composes, models, now)

    def publish(self, policy: Policy) -> Policy:
        """What an operator's `policy publish` leaves behind: the KMS's chain grows."""
        draft = jcs.loads_object(policy.document)
        draft.update(version=policy.version + 1, previous=policy.digest.hex(), models={})
        signed = unsigned(draft)
        for key in self.operators.keys[1:]:
            signed = sign_policy(signed, key)
        folder = self.layout.state("kms") / "policy"
        folder.mkdir(exist_ok=True)
        (folder / f"{policy.version + 1}.json").write_bytes(signed)
        return parse_signed(signed).policy


@pytest.fixture
def local(desk: Desk, tmp_path: Path) -> Local:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    operators = open_operators(layout)
    composes = write_composes(layout, operators, DSTACK_KMS_ROOT, EMBEDDED.template())
    reference = jcs.loads_object((desk.folder / "reference.json").read_bytes())
    reference["pccs_url"] = "http://127.0.0.1:1"
    reference["instances"] = {
        role: {"app_id": "aa" * 20, "compose_hash": hashlib.sha256(text).hexdigest()} for role, text in composes.items()
    }
    layout.reference.write_bytes(jcs.dumps(reference))
    return Local(layout, operators, composes)


def test_the_first_policy_lets_every_service_in(local: Local) -> None:
    policy = local.policy()
    assert policy.version == 1
    assert set(policy.roles) == set(SERVICES)
    assert all(len(grant.measurements) == 1 for grant in policy.roles.values())
    assert policy.development_roots
    assert len(parse_signed(local.layout.policy(1).read_bytes()).signatures) == 2


def test_the_kms_alone_is_measured_with_the_platforms_dstack_kms(local: Local) -> None:
    pins = {role: read_anchors(text.decode()).dstack_kms_root for role, text in local.composes.items()}
    assert pins == {role: DSTACK_KMS_ROOT if role == "kms" else None for role in SERVICES}


def test_a_restart_keeps_the_policy(local: Local) -> None:
    first = local.policy()
    reference = jcs.loads_object(local.layout.reference.read_bytes())
    local.layout.reference.write_bytes(jcs.dumps({**reference, "pccs_url": "http://127.0.0.1:2"}))
    assert local.policy(now=NOW + 3600) == first


def test_another_model_is_a_new_version_that_names_the_last(local: Local) -> None:
    first = local.policy()
    second = local.policy({"smollm2-135m": ["88" * 32]})
    assert (second.version, second.previous) == (2, first.digest)
    assert newest_policy(local.layout, local.operators) == second


def test_changed_code_is_a_new_version(local: Local) -> None:
    local.policy()
    text = local.composes["node"].replace(b"teemesh/node@sha256:", b"teemesh/node@sha256:0", 1)
    other = Local(local.layout, local.operators, {**local.composes, "node": text})
    assert other.policy().version == 2


def test_a_policy_that_ends_soon_is_followed_by_another(local: Local) -> None:
    first = local.policy()
    assert local.policy(now=first.not_after - 3600).version == 2


def test_what_was_published_to_the_kms_is_not_taken_back(local: Local) -> None:
    published = local.publish(local.policy())
    assert local.policy() == published
    assert local.layout.policy(2).exists()


def test_a_published_policy_that_too_few_signed_is_refused(local: Local) -> None:
    local.publish(local.policy())
    path = local.layout.state("kms") / "policy" / "2.json"
    signed = jcs.loads_object(path.read_bytes())
    path.write_bytes(jcs.dumps({**signed, "signatures": signed["signatures"][:1]}))
    with pytest.raises(PolicySignaturesInsufficient):
        newest_policy(local.layout, local.operators)


def test_other_operators_are_not_believed(local: Local) -> None:
    local.policy()
    shutil.rmtree(local.layout.operators)
    with pytest.raises(PolicySignaturesInsufficient):
        newest_policy(local.layout, open_operators(local.layout))
