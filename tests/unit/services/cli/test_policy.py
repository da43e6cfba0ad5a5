from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.policy.compose import ComposeMalformed, compose_hash, default_app_id, read_anchors
from libs.policy.document import PolicyMalformed
from libs.policy.releases import cache_salt_key
from libs.policy.signatures import PolicySignaturesInsufficient, verify_seed
from services.cli.mesh.operators import make_key, public_key
from services.cli.policy.draft import DraftInconsistent, OperatorKeyNotNamed, read_signed
from services.cli.policy.reference import ReferenceMalformed
from services.cli.terminal.inputs import InputUnreadable, OutputExists, OutputUnwritable
from tests.unit.services.cli.conftest import WEIGHTS, Desk

Run = Callable[..., int]


def _signed(desk: Desk, teemesh: Run, *operators: int) -> str:
    path = str(desk.folder / "policy.json")
    assert teemesh(*desk.init()) == 0
    for number in operators:
        assert teemesh("policy", "sign", path, "--key", str(desk.folder / f"operator-{number}.pem")) == 0
    return path


def test_drafted_signed_and_shown(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = _signed(desk, teemesh, 3, 1)
    compose = desk.folder / "kms.json"
    assert teemesh("policy", "show", path, "--compose", str(compose)) == 0
    shown = capsys.readouterr().out
    policy = verify_seed(Path(path).read_bytes(), read_anchors(compose.read_text()))
    for fact in (policy.digest.hex(), "2 of its 3 operators, 2 needed", "DEVELOPMENT POLICY", "sufficient"):
        assert fact in shown
    assert policy.models == {"smollm2-135m": frozenset({WEIGHTS})}
    assert policy.key_release("ledger-keyring") is not None


def test_a_compose_is_measured_with_the_dstack_kms_root_that_is_given(desk: Desk, teemesh: Run) -> None:
    root = "03d962450a41748021c8b02787ac36ce642ff0ae25f4c55019eb527e1112cfd764"
    out = desk.folder / "pinned.json"
    operators = [argument for key in desk.keys for argument in ("--operator-key", key.hex())]
    arguments = ["--trust-domain", "mesh.local", "--threshold", "2", "--image-digest", "ab" * 32, *operators]
    command = ["policy", "compose", *arguments, "--out", str(out), "--dstack-kms-root"]
    with pytest.raises(ComposeMalformed, match="for role kms alone"):
        teemesh(*command, root, "--role", "router")
    with pytest.raises(ComposeMalformed, match="compressed secp256k1"):
        teemesh(*command, "05" * 33, "--role", "kms")
    with pytest.raises(SystemExit):
        teemesh(*command, "zz", "--role", "kms")
    assert not out.exists()
    assert teemesh(*command, root, "--role", "kms") == 0
    assert read_anchors(out.read_text()).dstack_kms_root == bytes.fromhex(root)


def test_a_compose_is_allowed_under_the_app_id_that_it_runs_with(desk: Desk, teemesh: Run) -> None:
    teemesh(*desk.init("--app-id", f"{desk.folder / 'kms.json'}={'cc' * 20}"))
    policy = read_signed(desk.folder / "policy.json").policy
    for role, app_id in (("kms", "cc" * 20), ("node", "aa" * 20)):
        (measurement,) = policy.roles[role].measurements
        assert measurement.compose_hash == compose_hash((desk.folder / f"{role}.json").read_bytes())
        assert measurement.app_id == app_id


def test_without_an_assigned_app_id_the_default_one_is_allowed(desk: Desk, teemesh: Run) -> None:
    teemesh(*desk.init())
    (measurement,) = read_signed(desk.folder / "policy.json").policy.roles["kms"].measurements
    assert measurement.app_id == default_app_id((desk.folder / "kms.json").read_bytes())


def test_a_policy_that_too_few_signed_is_shown_as_not_in_force(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teemesh("policy", "show", _signed(desk, teemesh, 1)) == 1
    assert "NOT IN FORCE" in capsys.readouterr().out


def test_what_is_no_policy_is_not_shown_as_one_that_does_not_hold(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teemesh("policy", "show", str(desk.folder / "kms.json")) == 2
    assert "POLICY_MALFORMED" in capsys.readouterr().err


def test_an_expired_policy_is_shown_as_expired(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    teemesh(*desk.init("--lifetime-days", "0"))
    assert teemesh("policy", "show", str(desk.folder / "policy.json")) == 1
    assert "has expired" in capsys.readouterr().out


def test_what_runs_stays_allowed_while_operators_change_and_what_is_new_is_measured_with_them(
    desk: Desk, teemesh: Run
) -> None:
    previous = _signed(desk, teemesh, 1, 2)
    newcomer = public_key(make_key(desk.folder / "operator-4.pem"))
    keys = ("--operator-key", desk.keys[1].hex(), "--operator-key", newcomer.hex())
    operators = ("--trust-domain", "mesh.local", "--threshold", "2", *keys)
    admin = ("--tenant-admin-key", str(desk.folder / "tenant-admin.pem"))
    shared = (*operators, *admin, "--reference", str(desk.folder / "reference.json"), "--previous", previous)
    running = [argument for role in ("kms", "node") for argument in ("--compose", str(desk.folder / f"{role}.json"))]
    out = str(desk.folder / "policy-2.json")
    assert teemesh("policy", "init", *shared, *running, "--out", out) == 0
    roles = read_signed(Path(out)).policy.roles
    assert roles == read_signed(Path(previous)).policy.roles
    old = [argument for key in desk.keys for argument in ("--operator-key", key.hex())]
    made = str(desk.folder / "node-2.json")
    arguments = ("--trust-domain", "mesh.local", "--threshold", "2", "--image-digest", "cd" * 32, "--out", made)
    teemesh("policy", "compose", "--role", "node", *arguments, *old)
    with pytest.raises(DraftInconsistent, match="other operators"):
        teemesh("policy", "init", *shared, "--compose", made, "--out", str(desk.folder / "policy-3.json"))


def test_a_version_that_changed_the_operators_is_shown_under_composes_of_either(desk: Desk, teemesh: Run) -> None:
    previous = _signed(desk, teemesh, 1, 2)
    newcomer = public_key(make_key(desk.folder / "operator-4.pem"))
    document = json.loads((desk.folder / "policy.json").read_bytes())["policy"]
    document |= {"version": 2, "previous": read_signed(Path(previous)).policy.digest.hex()}
    document["operators"] = {"keys": [desk.keys[1].hex(), newcomer.hex()], "threshold": 2}
    rotation = str(desk.folder / "policy-2.json")
    Path(rotation).write_text(json.dumps({"policy": document, "signatures": []}))
    for number in (1, 2, 4):
        key = str(desk.folder / f"operator-{number}.pem")
        teemesh("policy", "sign", rotation, "--key", key, "--previous", previous)
    compose = str(desk.folder / "kms-2.json")
    keys = ("--operator-key", desk.keys[1].hex(), "--operator-key", newcomer.hex())
    arguments = ("--trust-domain", "mesh.local", "--threshold", "2", "--image-digest", "cd" * 32, "--out", compose)
    teemesh("policy", "compose", "--role", "kms", *arguments, *keys)
    for measured in (compose, str(desk.folder / "kms.json")):
        assert teemesh("policy", "show", rotation, "--compose", measured) == 0
    assert teemesh("policy", "show", previous, "--compose", compose) == 1
    assert teemesh("policy", "show", rotation) == 0
    with pytest.raises(InputUnreadable, match="cannot read"):
        teemesh("policy", "publish", rotation, "--mesh", str(desk.folder / "nowhere.json"))


def test_what_is_demanded_for_tenants_is_shown(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = desk.folder / "policy.json"
    assert teemesh(*desk.init()) == 0
    document = json.loads(path.read_bytes())
    document["policy"]["constraints"] = {
        "ab" * 16: {"regions": ["eu-2", "eu-1"], "hardware": {"tee_types": [], "gpu_required": True}}
    }
    path.write_text(json.dumps(document))
    teemesh("policy", "show", str(path))
    shown = capsys.readouterr().out
    assert "tenant       default: verified nodes\n" in shown
    assert f"tenant       {'ab' * 16}: verified nodes, in eu-1 or eu-2, on nothing, with a GPU\n" in shown


FOREIGN = {
    "name": "commercial",
    "kind": "openai",
    "origin": "https://[fe80::1]:8443",
    "models": {"frontier": "frontier-2"},
    "best_effort": True,
    "tenants": ["ab" * 16],
}


def _with(path: Path, **members: Any) -> str:
    """Write members into a draft, as its author would."""
    document = json.loads(path.read_bytes())
    document["policy"] |= members
    path.write_text(json.dumps(document))
    return str(path)


def test_who_outside_the_mesh_gets_prompts_is_shown(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    teemesh(*desk.init())
    node = json.loads((desk.folder / "policy.json").read_bytes())["policy"]["roles"]["node"]
    other = {
        "name": "other-mesh",
        "kind": "aci",
        "origin": "https://router.example",
        "models": {"here": "there"},
        "measurements": node["measurements"],
        "session_claims": [],
    }
    teemesh("policy", "show", _with(desk.folder / "policy.json", foreign_providers=[other, FOREIGN]))
    shown = capsys.readouterr().out
    assert "other-mesh: aci at https://router.example, here as there; 1 measurements\n" in shown
    assert (
        "commercial: openai at https://[fe80::1]:8443, frontier as frontier-2; nothing of it verified, "
        "unverified for 1 tenants\n"
    ) in shown


def test_the_next_version_keeps_what_no_flag_gives_and_says_what_it_allows(
    desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    teemesh(*desk.init("--allow-device", "ab" * 32))
    demands = {"default": {"verified_only": True, "regions": ["eu-1"]}}
    first = _with(desk.folder / "policy.json", constraints=demands, foreign_providers=[FOREIGN])
    capsys.readouterr()
    assert teemesh(*desk.init("--previous", first, out="second.json")) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("+ allows")]
    assert any("devices.allowed" in line for line in told), told
    before, after = (read_signed(desk.folder / name).policy for name in ("policy.json", "second.json"))
    assert after.constraints == before.constraints
    assert after.foreign_providers == before.foreign_providers


def test_the_next_version_changes_operators_with_both_sets(desk: Desk, teemesh: Run) -> None:
    previous = _signed(desk, teemesh, 1, 2)
    newcomer = make_key(desk.folder / "operator-4.pem")
    keys = ("--operator-key", desk.keys[1].hex(), "--operator-key", public_key(newcomer).hex())
    operators = ("--trust-domain", "mesh.local", "--threshold", "2", *keys)
    compose = str(desk.folder / "kms-2.json")
    teemesh("policy", "compose", "--role", "kms", "--image-digest", "cd" * 32, "--out", compose, *operators)
    out = str(desk.folder / "policy-2.json")
    admin = ("--tenant-admin-key", str(desk.folder / "tenant-admin.pem"))
    reference = ("--reference", str(desk.folder / "reference.json"))
    made = ("--compose", compose, "--previous", previous, "--out", out)
    assert teemesh("policy", "init", *operators, *admin, *reference, *made) == 0
    with pytest.raises(OperatorKeyNotNamed):
        teemesh("policy", "sign", out, "--key", str(desk.folder / "operator-1.pem"))
    for number in (1, 2, 4):
        key = str(desk.folder / f"operator-{number}.pem")
        assert teemesh("policy", "sign", out, "--key", key, "--previous", previous) == 0
    policy = verify_seed(Path(out).read_bytes(), read_anchors((desk.folder / "kms.json").read_text()))
    assert (policy.version, policy.previous) == (2, read_signed(Path(previous)).policy.digest)


def test_the_next_version_lifts_what_the_one_before_lifted(desk: Desk, teemesh: Run) -> None:
    assert teemesh(*desk.init("--lift-revocation", "ab" * 32)) == 0
    first = str(desk.folder / "policy.json")
    assert teemesh(*desk.init("--previous", first, "--lift-revocation", "cd" * 32, out="second.json")) == 0
    lifted = read_signed(desk.folder / "second.json").policy.lifted_revocations
    assert lifted == {b"\xab" * 32, b"\xcd" * 32}


def test_the_next_version_keeps_entries_as_long_as_the_one_before_unless_it_says_otherwise(
    desk: Desk, teemesh: Run
) -> None:
    assert teemesh(*desk.init("--retention-months", "24")) == 0
    first = str(desk.folder / "policy.json")
    assert teemesh(*desk.init("--previous", first, out="second.json")) == 0
    assert teemesh(*desk.init("--previous", first, "--retention-months", "36", out="third.json")) == 0
    months = [read_signed(desk.folder / name).policy.retention_months for name in ("second.json", "third.json")]
    assert months == [24, 36]


def _drafted_issuers(desk: Desk, teemesh: Run, *more: str) -> list[dict[str, Any]]:
    assert teemesh(*desk.init(*more)) == 0
    issuers: list[dict[str, Any]] = json.loads((desk.folder / "policy.json").read_bytes())["policy"]["gpu"]["issuers"]
    return issuers


def test_a_draft_gives_each_node_compose_a_key_for_its_salts_and_no_other_that_key(desk: Desk, teemesh: Run) -> None:
    path = _signed(desk, teemesh, 3, 1)
    policy = verify_seed(Path(path).read_bytes(), read_anchors((desk.folder / "kms.json").read_text()))
    composes = {measurement.compose_hash for measurement in policy.roles["node"].measurements}
    assert composes
    for compose in composes:
        rule = policy.key_release(cache_salt_key(compose))
        assert rule is not None
        assert rule.held
        assert rule.admits("node", compose)
        assert not rule.admits("node", "ab" * 32)
        assert not rule.admits("router", compose)
    assert policy.key_release(cache_salt_key("ab" * 32)) is None


def test_a_draft_pins_the_keys_and_authorities_of_its_references(desk: Desk, teemesh: Run) -> None:
    gpu = json.loads((desk.folder / "reference.json").read_bytes())["gpu"]
    (issuer,) = _drafted_issuers(desk, teemesh)
    assert issuer == {name: gpu[name] for name in ("issuer", "keys", "roots")} | {"development": True}


@pytest.mark.parametrize("left_out", ["keys", "roots"])
def test_a_reference_may_name_only_keys_or_only_authorities(desk: Desk, teemesh: Run, left_out: str) -> None:
    path = desk.folder / "reference.json"
    reference = json.loads(path.read_bytes())
    del reference["gpu"][left_out]
    path.write_bytes(jcs.dumps(reference))
    (issuer,) = _drafted_issuers(desk, teemesh)
    assert not issuer[left_out]


def test_an_authority_that_two_references_name_is_pinned_once(desk: Desk, teemesh: Run) -> None:
    reference = json.loads((desk.folder / "reference.json").read_bytes())
    second = desk.folder / "second.json"
    second.write_bytes(jcs.dumps({**reference, "mrtd": "ab" * 48}))
    (issuer,) = _drafted_issuers(desk, teemesh, "--reference", str(second))
    assert issuer["roots"] == reference["gpu"]["roots"]


def test_one_operator_cannot_sign_twice(desk: Desk, teemesh: Run) -> None:
    with pytest.raises(PolicyMalformed, match="already"):
        _signed(desk, teemesh, 1, 1)


def test_nothing_that_exists_is_overwritten(desk: Desk, teemesh: Run) -> None:
    _signed(desk, teemesh)
    with pytest.raises(OutputExists):
        teemesh(*desk.init())


def test_a_folder_that_is_not_there_is_said_in_one_line(desk: Desk, teemesh: Run) -> None:
    with pytest.raises(OutputUnwritable, match="cannot write"):
        teemesh(*desk.init("--out", str(desk.folder / "nowhere" / "policy.json")))


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--trust-domain", "mesh.example.org"], DraftInconsistent),
        (["--threshold", "1"], DraftInconsistent),
        (["--gpu-role", "router"], DraftInconsistent),
        (["--compose", "/nowhere/kms.json"], InputUnreadable),
        (["--model", "smollm2-135m"], InputUnreadable),
        (["--app-id", f"other.json={'aa' * 20}"], InputUnreadable),
        (["--operator-key", "ab" * 32], DraftInconsistent),
        (["--tenant-admin-key", "short"], InputUnreadable),
        (["--model", "smollm2-135m=77"], PolicyMalformed),
        (["--allow-device", "x"], PolicyMalformed),
        (["--tcb-status", "Revoked"], PolicyMalformed),
        (["--evidence-max-age-seconds", "0"], PolicyMalformed),
    ],
)
def test_a_draft_that_makes_no_mesh_is_not_written(
    desk: Desk, teemesh: Run, more: list[str], error: type[MeshError]
) -> None:
    with pytest.raises(error):
        teemesh(*desk.init(*more))
    assert not (desk.folder / "policy.json").exists()


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"mrtd": "ab"}, {"vendor_root": ""}, {"extra": 1}, {"instances": {"kms": {}}}, {"tee_type": "snp"}],
)
def test_reference_values_are_read_strictly(desk: Desk, teemesh: Run, change: dict[str, Any]) -> None:
    path = desk.folder / "reference.json"
    path.write_bytes(jcs.dumps({**json.loads(path.read_bytes()), **change}))
    with pytest.raises(ReferenceMalformed):
        teemesh(*desk.init())


def test_a_policy_that_too_few_signed_is_not_even_sent(desk: Desk, teemesh: Run) -> None:
    path = _signed(desk, teemesh, 1)
    with pytest.raises(PolicySignaturesInsufficient):
        teemesh("policy", "publish", path, "--mesh", str(desk.folder / "mesh.json"))


def test_publishing_without_a_mesh_says_what_is_missing(desk: Desk, teemesh: Run) -> None:
    path = _signed(desk, teemesh, 1, 2)
    mesh = desk.folder / "mesh.json"
    with pytest.raises(InputUnreadable, match="cannot read"):
        teemesh("policy", "publish", path, "--mesh", str(mesh))
    mesh.write_text("{}")
    with pytest.raises(InputUnreadable, match="kms_grpc"):
        teemesh("policy", "publish", path, "--mesh", str(mesh))
