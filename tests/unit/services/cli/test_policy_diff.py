"""`teemesh policy diff`: what a version changes, whether it may follow, and a status for each answer."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from libs.policy.document import read
from libs.policy.signatures import SignedPolicy, sign
from services.cli.mesh.operators import public_key
from services.cli.policy import command
from services.cli.policy.diff import UNSIGNED
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, UNUSABLE
from tests.unit.libs.tee.bench import DAY, NOW
from tests.unit.services.cli.evidence_desk import Desk, bench, desk

__all__ = ["bench", "desk"]


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    text: str
    json: dict[str, Any]


Diff = Callable[..., Answer]


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["policy", *arguments])
    code: int = args.run(args)
    return code


@pytest.fixture
def diff(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Diff:
    """Compare policy.json with another file, in both forms, which agree."""

    def act(after: str = "next.json") -> Answer:
        code = _run("diff", "policy.json", after)
        text = capsys.readouterr()
        if code == UNUSABLE:
            return Answer(code, text.err, {})
        assert _run("diff", "policy.json", after, "--json") == code
        return Answer(code, text.out, json.loads(capsys.readouterr().out))

    return act


def _next(desk: Desk, signers: tuple[int, ...] = (0, 1), **members: Any) -> None:
    before = json.loads((desk.folder / "policy.json").read_bytes())["policy"]
    digest = read(before).digest.hex()
    policy = read({**copy.deepcopy(before), "version": 2, "previous": digest, **members})
    signatures = tuple(sign(policy.document, desk.operators[index]) for index in signers)
    desk.write("next.json", SignedPolicy(policy, signatures).document)


def test_what_changes_is_told_and_that_it_may_follow(desk: Desk, diff: Diff) -> None:
    _next(desk, models={"qwen3-32b": ["ab" * 32]}, td_attributes=["0000001000000080"])
    answer = diff()
    assert answer.code == ACCEPTED
    assert [(each["member"], each["effect"]) for each in answer.json["differences"]] == [
        ('models."qwen3-32b"', "allows"),
        ("td_attributes", "withdraws"),
        ("td_attributes", "allows"),
    ]
    assert f'+ allows    models."qwen3-32b": weights {"ab" * 32}' in answer.text
    assert "- withdraws td_attributes: guests with TD attributes 0000001000000000" in answer.text
    assert answer.text.splitlines()[-1] == "MAY FOLLOW version 1"
    assert answer.json["may_follow"] is True


def test_a_version_that_changes_nothing_says_so(desk: Desk, diff: Diff) -> None:
    _next(desk)
    assert "nothing but number and chain differs" in diff().text


@pytest.mark.parametrize("change", [{"version": 3}, {"previous": "ab" * 32}, {"trust_domain": "mesh.example.org"}])
def test_what_is_not_next_may_not_follow(desk: Desk, diff: Diff, change: dict[str, Any]) -> None:
    _next(desk, **change)
    answer = diff()
    assert answer.code == REFUSED
    assert answer.json["refusal"]["reason"] == "POLICY_VERSION_NOT_NEXT"
    assert answer.text.splitlines()[-1].startswith("MAY NOT FOLLOW POLICY_VERSION_NOT_NEXT")


def test_a_draft_lacks_only_signatures_and_one_out_of_place_lacks_more(desk: Desk, diff: Diff) -> None:
    _next(desk, signers=(0,))
    answer = diff()
    assert (answer.code, answer.json["lacks_only_signatures"]) == (UNSIGNED, True)
    assert answer.text.splitlines()[-1].startswith("LACKS SIGNATURES POLICY_SIGNATURES_INSUFFICIENT")
    _next(desk, signers=(0,), version=3)
    assert (diff().code, diff().json["lacks_only_signatures"]) == (REFUSED, False)


def test_an_operators_change_lacks_the_newcomers_signature(desk: Desk, diff: Diff) -> None:
    keys = [public_key(Ed25519PrivateKey.generate()).hex(), public_key(desk.operators[0]).hex()]
    _next(desk, operators={"keys": keys, "threshold": 2})
    answer = diff()
    assert answer.code == UNSIGNED
    assert {each["member"] for each in answer.json["differences"]} == {"operators.keys"}


def test_what_is_no_policy_is_another_status(desk: Desk, diff: Diff) -> None:
    assert diff("evidence.json").text.startswith("teemesh: POLICY_MALFORMED: evidence.json: ")
    assert diff("nowhere.json").code == UNUSABLE


def test_who_signs_with_the_version_before_is_shown_what_changes(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    key = desk.operators[0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    desk.write("key.pem", key)
    Path(desk.folder / "key.pem").chmod(0o600)
    _next(desk, signers=(), not_after=NOW + 2 * DAY)
    assert _run("sign", "next.json", "--key", "key.pem", "--previous", "policy.json") == 0
    assert f"not_after: ceases to hold, unix seconds: {NOW + 2 * DAY}, was {NOW + DAY}" in capsys.readouterr().out
