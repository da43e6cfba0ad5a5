from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.policy.orders import RETIRE_KEY, Order, SignedOrder, parse_order
from services.cli.__main__ import main
from services.cli.mesh.operators import make_key

ORDER = Order("mesh.test", RETIRE_KEY, "models/claims", 2_000_000_000)
SHOWN = ("retire-key", "models/claims", "mesh.test", "2033-05-18 03:33:20Z")


@pytest.fixture
def order(tmp_path: Path) -> Path:
    path = tmp_path / "order.json"
    path.write_bytes(SignedOrder(ORDER).document)
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with as much of a mesh as it takes to draft an order."""
    names = ("mesh_ca", "operator_cert", "operator_key")
    for name in names:
        (tmp_path / name).write_bytes(b"PEM")
    members = {"kms_grpc": "127.0.0.1:9", "trust_domain": "mesh.test", **{name: name for name in names}}
    (tmp_path / "mesh.json").write_text(json.dumps(members))
    return tmp_path


def test_an_operator_sees_the_order_before_the_key_is_read(order: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kms", "approve", str(order), "--key", str(order.parent / "missing.pem")]) == 1
    said = capsys.readouterr()
    assert "INPUT_UNREADABLE" in said.err
    for part in SHOWN:
        assert part in said.out
    assert "signed by" not in said.out
    assert parse_order(order.read_bytes()).signatures == ()


def test_every_valid_signature_is_counted(order: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        key = order.parent / f"{number}.pem"
        make_key(key)
        assert main(["kms", "approve", str(order), "--key", str(key)]) == 0
        said = capsys.readouterr().out
        assert f"signed by {number}\n" in said
        assert "not valid" not in said


def test_a_signature_over_another_order_is_not_counted(order: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = SignedOrder(Order("mesh.test", RETIRE_KEY, "models/b", 2_000_000_000))
    moved = other.signed_by(Ed25519PrivateKey.generate()).signatures
    order.write_bytes(SignedOrder(ORDER, moved).document)
    key = order.parent / "alice.pem"
    make_key(key)
    assert main(["kms", "approve", str(order), "--key", str(key)]) == 0
    said = capsys.readouterr().out
    assert "signed by 1\n" in said
    assert "1 of its signatures are not valid" in said


@pytest.mark.parametrize("days", ["0", "-1", "366", "1e2", "\u0663", "9" * 5000])
@pytest.mark.parametrize("command", [["retire", "models/a"], ["join", "kms-2", "--compose", "c", "--device", "0" * 64]])
def test_an_order_holds_for_a_day_to_a_year(
    state: Path, capsys: pytest.CaptureFixture[str], command: list[str], days: str
) -> None:
    out = state / "order.json"
    with pytest.raises(SystemExit):
        main(["kms", *command, "--state", str(state), f"--valid-days={days}", "--out", str(out)])
    assert "from 1 to 365" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("days", [1, 365])
def test_a_retirement_is_drafted_for_as_many_days_as_asked(state: Path, days: int) -> None:
    out, before = state / "order.json", int(time.time())
    assert main(["kms", "retire", "models/a", "--state", str(state), "--valid-days", str(days), "--out", str(out)]) == 0
    drafted = parse_order(out.read_bytes()).order
    assert (drafted.subject, drafted.trust_domain) == ("models/a", "mesh.test")
    assert before + days * 86400 <= drafted.not_after <= int(time.time()) + days * 86400


@pytest.mark.parametrize("name", ["ledger-keyring", "ledger-resume"])
def test_no_order_is_drafted_to_end_the_log(state: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    out = state / "order.json"
    assert main(["kms", "retire", name, "--state", str(state), "--out", str(out)]) == 1
    assert "KEY_NOT_RETIRABLE" in capsys.readouterr().err
    assert not out.exists()
