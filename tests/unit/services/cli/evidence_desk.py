"""A desk with evidence that a software TEE made, its policy and its CA, and `teemesh evidence` to run on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from libs.policy.compose import Anchors
from libs.policy.document import read
from libs.policy.signatures import SignedPolicy, sign
from libs.tee.steps import TITLES
from services.cli.evidence import command
from services.cli.policy.composes import render_compose
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, UNUSABLE
from services.devtee.tls import TlsRequest, issue_tls_key
from tests.fakes.policy_draft import policy_draft
from tests.unit.libs.tee.bench import DAY, NOW, Bench

TRUST_DOMAIN = "mesh.local"
Run = Callable[..., int]


@dataclass(frozen=True, slots=True)
class Desk:
    """A folder with evidence.json, policy.json, ca.pem and whatever a test adds."""

    folder: Path
    bench: Bench
    operators: tuple[Ed25519PrivateKey, ...]

    def write(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    def policy(self, name: str = "policy.json", signers: int = 2, **members: Any) -> str:
        draft = policy_draft(
            TRUST_DOMAIN,
            self.operators,
            self.bench.machine.vendor_root,
            {"router": self.bench.measurement},
            not_before=NOW - DAY,
            not_after=NOW + DAY,
        )
        policy = read({**draft, **members})
        signatures = tuple(sign(policy.document, key) for key in self.operators[:signers])
        return self.write(name, SignedPolicy(policy, signatures).document)

    def compose(self, *operators: Ed25519PrivateKey) -> str:
        keys = tuple(key.public_key().public_bytes_raw() for key in operators or self.operators)
        text = render_compose(Anchors("kms", TRUST_DOMAIN, keys, 2), "sha256:" + "ab" * 32)
        return self.write("kms.json", text)

    def evidence(self, name: str = "evidence.json", **parts: Any) -> str:
        return self.write(name, self.bench.evidence(**parts).document)

    def certificate(self, name: str = "peer.pem") -> str:
        wanted = TlsRequest("peer", ("peer.test",), True, True, True, NOW - 10, NOW + 3600)
        return self.write(name, issue_tls_key(self.bench.td, wanted, NOW).chain[0].encode())

    def collateral(self) -> str:
        return self.write("collateral.json", self.bench.collateral().encode())


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.create()


@pytest.fixture
def desk(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The folder is the working one too: no mesh of the machine that runs the tests is found."""
    monkeypatch.chdir(tmp_path)
    desk = Desk(tmp_path, bench, tuple(Ed25519PrivateKey.generate() for _ in range(3)))
    desk.evidence()
    desk.policy()
    ca = x509.load_der_x509_certificate(bench.issuer.certificate_der)
    desk.write("ca.pem", ca.public_bytes(Encoding.PEM))
    return desk


@pytest.fixture
def teemesh() -> Run:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))

    def run(*arguments: str) -> int:
        args = parser.parse_args(["evidence", *arguments])
        code: int = args.run(args)
        return code

    return run


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    text: str
    json: dict[str, Any]

    @property
    def results(self) -> list[str]:
        return [step["result"] for step in self.json["steps"]]


@pytest.fixture
def appraise(desk: Desk, teemesh: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Appraise in both forms, which agree."""

    def act(file: str = "evidence.json", *more: str, pin: tuple[str, ...] = ("--ca", "ca.pem")) -> Outcome:
        policy = () if "--policy" in more else ("--policy", "policy.json")
        now = () if "--now" in more else ("--now", str(NOW))
        arguments = ("appraise", file, *policy, *now, *pin, *more)
        code = teemesh(*arguments)
        text = capsys.readouterr().out
        assert teemesh(*arguments, "--json") == code
        return Outcome(code, text, json.loads(capsys.readouterr().out))

    return act


def refusal(outcome: Outcome, step: int, reason: str) -> None:
    assert outcome.code == REFUSED
    assert outcome.results == ["pass"] * (step - 1) + ["fail"] + ["not reached"] * (11 - step)
    assert outcome.json["refusal"]["reason"] == reason
    assert outcome.json["accepted"] is False
    assert outcome.text.splitlines()[-1].startswith(f"REFUSED {reason}: ")
    assert f"FAIL {step:2} {TITLES[step]}" in outcome.text


def unusable(teemesh: Run, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert teemesh(*arguments) == UNUSABLE
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    return said.err


def shown(teemesh: Run, capsys: pytest.CaptureFixture[str], file: str) -> tuple[str, dict[str, Any]]:
    assert teemesh("show", file) == ACCEPTED
    text = capsys.readouterr().out
    assert text.startswith(" UNVERIFIED ")
    assert teemesh("show", file, "--json") == ACCEPTED
    members: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert members["verified"] is False
    return text, members
