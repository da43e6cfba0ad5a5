"""`teemesh policy explain`: for each outcome the member of the policy that decides it, over evidence of a real TD."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.policy.deciding import DECIDED_REASONS
from libs.policy.revocation import Revocation, RevocationKind, SignedRevocation, sign_revocation
from libs.tee import binding
from libs.tee.appraisal import appraise
from libs.tee.nvidia.evidence import GpuEvidence
from services.cli.policy import command
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, UNUSABLE
from services.devtee.collateral import CollateralShape
from services.devtee.nras import ISSUER
from tests.fakes.policy_draft import gpu_member, gpu_root
from tests.unit.libs.tee.bench import CLAIMS, COMPOSE, DAY, NOW, Bench, spki_of
from tests.unit.libs.tee.nvidia.gpu_bench import GpuBench
from tests.unit.services.cli.evidence_desk import TRUST_DOMAIN, Desk, bench, desk

__all__ = ["bench", "desk"]

WEIGHTS = "ab" * 32
OTHER_WEIGHTS = "cd" * 32
NODE = {"role": "node", "models": [{"id": "qwen3-32b", "weights_sha256": WEIGHTS}]}
INSTANCE = f"spiffe://{TRUST_DOMAIN}/router/1"
STATUSES = {
    "statuses": ["UpToDate"],
    "refused_advisories": [],
    "grace_seconds": 0,
    "minimum_evaluation_number": 0,
    "maximum_collateral_age_seconds": DAY,
}


@dataclass(frozen=True, slots=True)
class Ground:
    """What rows take their evidence and values from."""

    desk: Desk
    gpus: GpuBench
    device: str
    family: str

    @property
    def compose_hash(self) -> str:
        return self.desk.bench.measurement.compose_hash

    def grant(self, role: str = "router", **members: Any) -> dict[str, Any]:
        grant = {"measurements": [self.desk.bench.measurement.to_json()], "gpu_required": False, **members}
        return {"roles": {role: grant}}

    def gpu(self, **members: Any) -> dict[str, Any]:
        """A policy that judges GPUs, and requires one."""
        roots = [
            {
                "name": "devtee",
                "tee_type": "tdx",
                "certificate": self.desk.bench.machine.vendor_root.hex(),
                "development": True,
            },
            gpu_root(self.gpus.vendor.root.der),
        ]
        rule = {**gpu_member(ISSUER, self.gpus.nras.authority.root.der), **members}
        return {"vendor_roots": roots, "gpu": rule, **self.grant(gpu_required=True)}

    def with_gpu(self) -> dict[str, Any]:
        """Evidence with the word of the token service and each GPU's own report."""
        challenge = self.desk.bench.issuer.challenge()
        nonce = binding.gpu_nonce(challenge.nonce, self.desk.bench.spki)
        posted = self.gpus.posted(nonce)
        evidence = GpuEvidence.parse(
            {
                "v": 1,
                "vendor": "nvidia",
                "token": self.gpus.nras.attest(posted, nonce, NOW),
                "switch_token": None,
                "keys": self.gpus.keys,
                "reports": [
                    {"report": each.report.hex(), "certificate_chain": each.certificate_chain.decode()}
                    for each in posted
                ],
            }
        )
        claims = {**CLAIMS, "gpu_evidence_sha256": evidence.digest.hex()}
        return {"challenge": challenge, "claims": claims, "gpu_evidence": evidence}


@dataclass(frozen=True, slots=True)
class Row:
    """One outcome. The functions say what differs from evidence that is admitted."""

    rule: str | None
    step: int | None
    reason: str | None
    policy: Callable[[Ground], Mapping[str, Any]] = lambda _: {}
    evidence: Callable[[Ground], Mapping[str, Any]] = lambda _: {}
    flags: tuple[str, ...] = ()
    revoked: Callable[[Ground], tuple[RevocationKind, str]] | None = None
    lifted: bool = field(default=False)


def _shape(**shape: Any) -> Callable[[Ground], Mapping[str, Any]]:
    return lambda _: {"shape": CollateralShape(**{"issued_at": NOW, **shape})}


def _tcb(**members: Any) -> Callable[[Ground], Mapping[str, Any]]:
    return lambda _: {"tcb": {**STATUSES, **members}}


def _role_tcb(**members: Any) -> Callable[[Ground], Mapping[str, Any]]:
    return lambda ground: ground.grant(tcb={**STATUSES, **members})


def _devices(**members: Any) -> Callable[[Ground], Mapping[str, Any]]:
    """Lists in which "its" stands for this machine's own value."""

    def make(ground: Ground) -> Mapping[str, Any]:
        own = {"allowed": ground.device, "revoked": ground.device, "revoked_families": ground.family}
        lists = {name: [own[name] if value == "its" else value for value in values] for name, values in members.items()}
        return {"devices": {"allowed": [], "revoked": [], **lists}}

    return make


def _other_root(ground: Ground) -> Mapping[str, Any]:
    root = Bench.create().machine.vendor_root
    return {"vendor_roots": [{"name": "other", "tee_type": "tdx", "certificate": root.hex(), "development": True}]}


def _other_measurement(ground: Ground) -> Mapping[str, Any]:
    return ground.grant(measurements=[{**ground.desk.bench.measurement.to_json(), "compose_hash": "ee" * 32}])


def _node(weights: str) -> Callable[[Ground], Mapping[str, Any]]:
    return lambda ground: {**ground.grant("node"), "models": {"qwen3-32b": [weights]}}


def _nodes_claims(_: Ground) -> Mapping[str, Any]:
    return {"claims": NODE}


ROWS = {
    "admitted": Row("roles.router.measurements[0]", 8, None),
    "admitted by the second of two": Row(
        "roles.router.measurements[1]",
        8,
        None,
        lambda ground: ground.grant(
            measurements=[
                {**ground.desk.bench.measurement.to_json(), "mrtd": "ee" * 48},
                ground.desk.bench.measurement.to_json(),
            ]
        ),
    ),
    "policy not begun": Row("not_before", None, "POLICY_NOT_VALID_NOW", lambda _: {"not_before": NOW + 1}),
    "policy over": Row("not_after", None, "POLICY_NOT_VALID_NOW", lambda _: {"not_after": NOW}),
    "another root": Row("vendor_roots", 2, "VENDOR_ROOT_NOT_TRUSTED", _other_root),
    "a status": Row("tcb.statuses", 3, "TCB_STATUS_NOT_ALLOWED", evidence=_shape(tcb_status="SWHardeningNeeded")),
    "out of grace": Row(
        "tcb.grace_seconds",
        3,
        "TCB_TOO_OLD",
        _tcb(statuses=["OutOfDate"], grace_seconds=5),
        _shape(tcb_status="OutOfDate", tcb_date=NOW - DAY),
    ),
    "an advisory": Row(
        "tcb.refused_advisories",
        3,
        "TCB_ADVISORY_REFUSED",
        _tcb(statuses=["UpToDate", "SWHardeningNeeded"], refused_advisories=["INTEL-SA-00837"]),
        _shape(tcb_status="SWHardeningNeeded", advisories=("INTEL-SA-00837",)),
    ),
    "an evaluation number": Row(
        "tcb.minimum_evaluation_number", 3, "TCB_EVALUATION_TOO_LOW", _tcb(minimum_evaluation_number=18)
    ),
    "the role's own evaluation number": Row(
        "roles.router.tcb.minimum_evaluation_number",
        3,
        "TCB_EVALUATION_TOO_LOW",
        _role_tcb(minimum_evaluation_number=18),
    ),
    "old collateral": Row(
        "tcb.maximum_collateral_age_seconds", 3, "COLLATERAL_TOO_OLD", evidence=_shape(issued_at=NOW - 2 * DAY)
    ),
    "attributes": Row(
        "td_attributes", 4, "TD_ATTRIBUTES_NOT_ALLOWED", lambda _: {"td_attributes": ["0000001000000080"]}
    ),
    "an old challenge": Row(
        "evidence_max_age_seconds",
        5,
        "CHALLENGE_TOO_OLD",
        evidence=lambda ground: {"challenge": ground.desk.bench.issuer.challenge(NOW - 4000)},
    ),
    "another text": Row(None, 7, "COMPOSE_HASH_MISMATCH", evidence=lambda _: {"app_compose": COMPOSE + " "}),
    "another measurement": Row("roles.router.measurements", 8, "MEASUREMENT_NOT_ALLOWED", _other_measurement),
    "nothing allowed": Row(
        "roles.router.measurements", 8, "MEASUREMENT_NOT_ALLOWED", lambda ground: ground.grant(measurements=[])
    ),
    "a role without a grant": Row("roles", 8, "MEASUREMENT_NOT_ALLOWED", flags=("--role", "ledger")),
    "a revoked machine": Row("devices.revoked", 9, "DEVICE_REVOKED", _devices(revoked=["its"])),
    "a machine that is not listed": Row("devices.allowed", 9, "DEVICE_NOT_LISTED", _devices(allowed=["ee" * 32])),
    "a revoked family": Row("devices.revoked_families", 9, "CPU_FAMILY_REVOKED", _devices(revoked_families=["its"])),
    "a family that is not listed": Row(
        "devices.allowed_families", 9, "CPU_FAMILY_NOT_LISTED", _devices(allowed_families=["genoa"])
    ),
    "no GPU": Row(
        "roles.router.gpu_required", 10, "GPU_EVIDENCE_MISSING", lambda ground: ground.grant(gpu_required=True)
    ),
    "no word on GPUs": Row(
        "gpu", 10, "GPU_RULE_MISSING", lambda ground: ground.grant(gpu_required=True), Ground.with_gpu
    ),
    "a GPU": Row("roles.router.measurements[0]", 8, None, Ground.gpu, Ground.with_gpu),
    "an old token": Row(
        "gpu.maximum_token_age_seconds",
        10,
        "GPU_TOKEN_TOO_OLD",
        lambda ground: ground.gpu(maximum_token_age_seconds=1),
        Ground.with_gpu,
        ("--now", str(NOW + 400)),
    ),
    "a GPU that is not listed": Row(
        "gpu.allowed_ueids",
        10,
        "GPU_DEVICE_NOT_ALLOWED",
        lambda ground: ground.gpu(allowed_ueids=["1"]),
        Ground.with_gpu,
    ),
    "a GPU's model": Row(
        "gpu.allowed_models",
        10,
        "GPU_MODEL_NOT_ALLOWED",
        lambda ground: ground.gpu(allowed_models=["GB200"]),
        Ground.with_gpu,
    ),
    "other weights": Row(
        'models."qwen3-32b"', 11, "MODEL_NOT_ALLOWED", _node(OTHER_WEIGHTS), _nodes_claims, ("--role", "node")
    ),
    "the weights": Row("roles.node.measurements[0]", 8, None, _node(WEIGHTS), _nodes_claims),
    "another role": Row(
        None, 11, "ROLE_MISMATCH", evidence=lambda _: {"claims": {**CLAIMS, "role": "kms"}}, flags=("--role", "router")
    ),
    "a revoked measurement": Row(
        "revocations",
        8,
        "MEASUREMENT_REVOKED",
        revoked=lambda ground: (RevocationKind.MEASUREMENT, ground.compose_hash),
    ),
    "a machine that one operator revoked": Row(
        "revocations", 9, "DEVICE_REVOKED", revoked=lambda ground: (RevocationKind.DEVICE, ground.device)
    ),
    "a machine that the document revokes as well": Row(
        "devices.revoked",
        9,
        "DEVICE_REVOKED",
        _devices(revoked=["its"]),
        revoked=lambda ground: (RevocationKind.DEVICE, ground.device),
    ),
    "a family that one operator revoked": Row(
        "revocations", 9, "CPU_FAMILY_REVOKED", revoked=lambda ground: (RevocationKind.CPU_FAMILY, ground.family)
    ),
    "a key": Row(
        "revocations",
        None,
        "KEY_REVOKED",
        revoked=lambda ground: (RevocationKind.KEY, hashlib.sha256(ground.desk.bench.spki).hexdigest()),
    ),
    "an instance": Row(
        "revocations",
        None,
        "NODE_REVOKED",
        flags=("--spiffe-id", INSTANCE),
        revoked=lambda ground: (RevocationKind.NODE, INSTANCE),
    ),
    "patch levels that policy and role refuse alike": Row(
        "tcb.statuses",
        3,
        "TCB_STATUS_NOT_ALLOWED",
        _role_tcb(),
        _shape(tcb_status="SWHardeningNeeded"),
    ),
    "a revoked measurement that is not listed either": Row(
        "revocations",
        8,
        "MEASUREMENT_REVOKED",
        lambda ground: {"roles": {"router": {"measurements": [], "gpu_required": False}}},
        revoked=lambda ground: (RevocationKind.MEASUREMENT, ground.compose_hash),
    ),
    "a revoked machine of a measurement that is not listed": Row(
        "roles.router.measurements",
        8,
        "MEASUREMENT_NOT_ALLOWED",
        lambda ground: {"roles": {"router": {"measurements": [], "gpu_required": False}}},
        revoked=lambda ground: (RevocationKind.DEVICE, ground.device),
    ),
    "a revoked key of a measurement that is not listed": Row(
        "revocations",
        None,
        "KEY_REVOKED",
        lambda ground: {"roles": {"router": {"measurements": [], "gpu_required": False}}},
        revoked=lambda ground: (RevocationKind.KEY, hashlib.sha256(ground.desk.bench.spki).hexdigest()),
    ),
    "a lifted revocation": Row(
        "roles.router.measurements[0]",
        8,
        None,
        revoked=lambda ground: (RevocationKind.MEASUREMENT, ground.compose_hash),
        lifted=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    text: str
    json: dict[str, Any]


Explain = Callable[..., Answer]


@pytest.fixture
def explain(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Explain:
    """Ask in both forms, which agree."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))

    def act(*flags: str, file: str = "evidence.json") -> Answer:
        policy = () if "--policy" in flags else ("--policy", "policy.json")
        now = () if "--now" in flags else ("--now", str(NOW))
        args = ["policy", "explain", file, "--ca", "ca.pem", *policy, *now, *flags]
        parsed = parser.parse_args(args)
        code: int = parsed.run(parsed)
        text = capsys.readouterr()
        if code == UNUSABLE:
            return Answer(code, text.err, {})
        parsed = parser.parse_args([*args, "--json"])
        assert parsed.run(parsed) == code
        return Answer(code, text.out, json.loads(capsys.readouterr().out))

    return act


@pytest.fixture(scope="module")
def gpus() -> GpuBench:
    return GpuBench.create()


@pytest.fixture
def ground(desk: Desk, gpus: GpuBench) -> Ground:
    appraisal = appraise(desk.bench.evidence(), desk.bench.rules(), desk.bench.context())
    return Ground(desk, gpus, appraisal.device_id, appraisal.cpu_family)


def _revocation(desk: Desk, kind: RevocationKind, value: str, operator: int = 2) -> SignedRevocation:
    revocation = Revocation(TRUST_DOMAIN, kind, value, "CVE-2026-1234", NOW * 1000)
    return sign_revocation(revocation, desk.operators[operator])


@pytest.mark.parametrize("name", ROWS)
def test_the_deciding_rule_is_named(name: str, ground: Ground, explain: Explain) -> None:
    row, desk = ROWS[name], ground.desk
    members, flags = dict(row.policy(ground)), row.flags
    expected = row.rule
    if row.revoked is not None:
        signed = _revocation(desk, *row.revoked(ground))
        flags = (*flags, "--revocation", desk.write("revocation.json", signed.document))
        if expected == "revocations":
            expected = f'revocations."{signed.revocation.id.hex()}"'
        if row.lifted:
            members["lifted_revocations"] = [signed.revocation.id.hex()]
    desk.policy(**members)
    desk.evidence(**row.evidence(ground))
    answer = explain(*flags)
    assert (answer.json["rule"], answer.json["step"], answer.json["reason"]) == (expected, row.step, row.reason)
    assert answer.json["admitted"] is (row.reason is None)
    assert answer.code == (ACCEPTED if row.reason is None else REFUSED)
    assert f"rule         {expected or 'none of the policy'}" in answer.text
    last = answer.text.splitlines()[-1]
    assert last.startswith("ADMITTED to role " if row.reason is None else f"REFUSED {row.reason}: ")
    assert (answer.json["change"] is None) == (row.reason is None)


def test_a_revocation_is_told_with_the_operators_reason(desk: Desk, ground: Ground, explain: Explain) -> None:
    signed = _revocation(desk, RevocationKind.DEVICE, ground.device)
    (desk.folder / "known").mkdir()
    desk.write("known/one.json", signed.document)
    desk.write("known/two.json", _revocation(desk, RevocationKind.DEVICE, "ee" * 32).document)
    answer = explain("--revocation", "known")
    (told,) = answer.json["revocations"]
    assert (told["id"], told["reason"]) == (signed.revocation.id.hex(), "CVE-2026-1234")
    assert told["operator_of_this_version"] is True
    assert "because    CVE-2026-1234" in answer.text
    assert "2 counted" in answer.text


def test_a_revocation_by_one_who_is_no_operator_any_more_is_told_as_such(
    desk: Desk, ground: Ground, explain: Explain
) -> None:
    former = Ed25519PrivateKey.generate()
    signed = sign_revocation(Revocation(TRUST_DOMAIN, RevocationKind.DEVICE, ground.device, "old", 1), former)
    answer = explain("--revocation", desk.write("revocation.json", signed.document))
    assert answer.json["reason"] == "DEVICE_REVOKED"
    assert "no operator of this version" in answer.text


@pytest.mark.parametrize("name", ["forged", "foreign", "torn", "missing"])
def test_a_revocation_that_does_not_verify_cannot_be_judged_by(desk: Desk, explain: Explain, name: str) -> None:
    signed = _revocation(desk, RevocationKind.DEVICE, "ee" * 32)
    foreign = Revocation("other.test", RevocationKind.DEVICE, "ee" * 32, "x", 1)
    desk.write("forged", SignedRevocation(signed.revocation, signed.key, bytes(64)).document)
    desk.write("foreign", sign_revocation(foreign, desk.operators[0]).document)
    desk.write("torn", signed.document[:-1])
    assert explain("--revocation", name).code == UNUSABLE


def test_a_policy_that_too_few_signed_admits_nothing_but_as_a_draft(desk: Desk, explain: Explain) -> None:
    desk.policy("draft.json", signers=0)
    refused = explain("--policy", "draft.json")
    assert (refused.json["rule"], refused.json["reason"]) == ("operators", "POLICY_SIGNATURES_INSUFFICIENT")
    assert explain("--policy", "draft.json", "--draft").code == ACCEPTED
    desk.policy("late.json", signers=0, not_after=NOW)
    assert explain("--policy", "late.json", "--draft").json["rule"] == "not_after"
    assert "--draft" in explain("--draft", "--compose", desk.compose()).text


def test_signatures_are_judged_by_a_compose(desk: Desk, explain: Explain) -> None:
    assert explain("--compose", desk.compose()).code == ACCEPTED
    strangers = desk.compose(*(Ed25519PrivateKey.generate() for _ in range(3)))
    assert explain("--compose", strangers).json["rule"] == "operators"


@pytest.mark.parametrize(
    ("rules", "rule", "granted"),
    [
        ([{"name": "a", "roles": ["router"]}], 'key_releases."a"', True),
        ([{"name": "b", "roles": ["router"]}], "key_releases", False),
        ([{"name": "a", "roles": ["node"]}], 'key_releases."a".roles', False),
        (
            [{"name": "a", "roles": ["router"], "compose_hashes": ["ee" * 32]}],
            'key_releases."a".compose_hashes',
            False,
        ),
        ([], "key_releases", False),
    ],
)
def test_the_rule_about_a_key_is_named(
    desk: Desk, explain: Explain, rules: list[dict[str, Any]], rule: str, granted: bool
) -> None:
    desk.policy(key_releases=rules)
    answer = explain("--key", "a")
    assert answer.json["admitted"] is True
    assert (answer.json["key"]["rule"], answer.json["key"]["granted"]) == (rule, granted)
    assert answer.code == (ACCEPTED if granted else REFUSED)
    assert answer.text.splitlines()[-1].startswith("RELEASED key a" if granted else "NOT RELEASED key a")


def test_what_is_not_admitted_gets_no_key_and_a_wildcard_names_none(desk: Desk, explain: Explain) -> None:
    desk.policy(key_releases=[{"name": "a", "roles": ["router"]}], td_attributes=["0000001000000080"])
    answer = explain("--key", "a")
    assert (answer.json["key"]["granted"], answer.json["key"]["rule"]) == (False, "td_attributes")
    assert explain("--key", "a/*").code == UNUSABLE


@pytest.mark.parametrize("file", ["ca.pem", "peer.pem", "nowhere.json"])
def test_what_is_no_evidence_document_is_another_status(desk: Desk, explain: Explain, file: str) -> None:
    desk.certificate()
    assert explain(file=file).code == UNUSABLE


def test_a_document_that_cannot_be_read_is_refused_in_the_first_step_by_no_rule(desk: Desk, explain: Explain) -> None:
    desk.write("cut.json", desk.bench.evidence().document[:-1])
    answer = explain("--role", "router", file="cut.json")
    assert (answer.json["rule"], answer.json["step"], answer.json["reason"]) == (None, 1, "JSON_MALFORMED")


def test_another_key_than_the_connections_is_no_rule_of_the_policy(desk: Desk, explain: Explain) -> None:
    other = spki_of(ec.generate_private_key(ec.SECP256R1())).hex()
    answer = explain("--spki", other)
    assert (answer.json["rule"], answer.json["reason"]) == (None, "SPKI_MISMATCH")
    assert "docs/evidence.md" in answer.json["change"]


def test_every_reason_that_a_member_is_named_for_is_one_that_is_raised() -> None:
    raised = {
        statement.value.value
        for path in (*Path("libs/tee").rglob("*.py"), *Path("libs/policy").glob("*.py"))
        for statement in ast.walk(ast.parse(path.read_text()))
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and [target.id for target in statement.targets if isinstance(target, ast.Name)] == ["reason"]
    }
    assert raised >= DECIDED_REASONS
