"""The other commands on a running mesh, and what a second `up` does. What ends a mesh is with the faults."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.entry_schema import require_documented_exchange
from tests.fakes.ports import free_port
from tests.mesh.running import ROOT, RunningMesh, short_folder, teemesh, until_serving

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module", autouse=True)
def watching(mesh: RunningMesh) -> Iterator[subprocess.Popen[str]]:
    """`evidence watch` until it has seen one appraisal: each node is appraised again every minute, while others run.

    What it prints is made by the service after this began, whatever the tests before did.
    """
    command = [sys.executable, "-m", "services.cli", "evidence", "watch", "--count", "1", "--json"]
    with subprocess.Popen(
        [*command, "--state", str(mesh.state)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        yield watch
        watch.kill()


def test_chat_verifies_every_answer_and_what_it_keeps_verifies_again(mesh: RunningMesh, tmp_path: Path) -> None:
    kept = str(tmp_path / "answer.json")
    done = mesh.run("chat", "What is the capital of France? Answer in one sentence.", "--save", kept, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout
    assert "FAIL" not in done.stdout
    require_documented_exchange(Path(kept).read_bytes())
    again = teemesh("verify", kept, "--mesh", str(mesh.state / "mesh.json"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("PASS") == 12


def test_chat_verifies_an_answer_that_came_encrypted_and_what_it_keeps_opens_again(
    mesh: RunningMesh, tmp_path: Path
) -> None:
    kept = str(tmp_path / "answer.json")
    question = "What is the capital of France? Answer in one sentence."
    done = mesh.run("chat", "--e2ee", question, "--save", kept, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VERIFIED: 13 of 13 checks passed" in done.stdout
    require_documented_exchange(Path(kept).read_bytes())
    again = teemesh("verify", kept, "--mesh", str(mesh.state / "mesh.json"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "PASS 13 answer could be read" in again.stdout


def test_status_shows_everyone_serving(mesh: RunningMesh) -> None:
    done = mesh.run("status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" serving ") == 7
    assert "policy: version 1" in done.stdout
    assert "log: mesh.local/ledger/1 has" in done.stdout


def test_the_running_kms_is_measured_with_its_platforms_dstack_kms(mesh: RunningMesh) -> None:
    compose = json.loads((mesh.state / "compose" / "kms.json").read_bytes())
    platform = json.loads((mesh.state / "devtee" / "reference.json").read_bytes())
    assert compose["teemesh"]["dstack_kms_root"] == platform["kms_public_key"]
    measured = hashlib.sha256((mesh.state / "compose" / "kms.json").read_bytes()).hexdigest()
    assert platform["instances"]["kms"]["compose_hash"] == measured


def test_status_says_what_the_leases_rest_on_once_the_sweep_has_seen_them(mesh: RunningMesh) -> None:
    for _ in range(60):
        said = mesh.run("status").stdout
        if "evidence: 1 of 1 live leases rest on accepted evidence" in said:
            return
    raise AssertionError(said)


def test_operators_see_rotate_and_retire_keys_and_the_log_has_all_of_it(mesh: RunningMesh, tmp_path: Path) -> None:
    def kms(*arguments: str) -> list[str]:
        done = mesh.run("kms", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    order = tmp_path / "order.json"
    assert kms("rotate", "models/a") == ["models/a: epoch 2 is the newest"]
    assert kms("rotate", "models/a", "--epoch", "2") == ["models/a: epoch 2 is the newest"]
    kms("retire", "models/a", "--out", str(order))
    for number in (1, 2):
        refused = mesh.run("kms", "submit", str(order))
        assert (refused.returncode, "ORDER_SIGNATURES_INSUFFICIENT" in refused.stderr) == (1, True)
        key = mesh.state / "operators" / f"operator-{number}.pem"
        assert teemesh("kms", "approve", str(order), "--key", str(key)).returncode == 0
    assert kms("submit", str(order)) == ["models/a: retired"]
    assert "KEY_RETIRED" in mesh.run("kms", "rotate", "models/a").stderr
    keys = {key["name"]: key for key in map(json.loads, kms("keys", "--json"))}
    assert (keys["models/a"]["newest_epoch"], keys["models/a"]["retired"]) == (2, True)
    assert keys["ledger-keyring"]["roles"] == ["ledger"]
    decisions = [json.loads(line) for line in kms("release-log", "--json")]
    made = [(said["decision"], said.get("epoch")) for said in decisions if said["name"] == "models/a"]
    assert made == [("rotated", 2), ("retired", None)]
    assert any("released" in line and "ledger-keyring" in line for line in kms("release-log"))


def test_evidence_of_a_running_service_is_fetched_and_passes_every_step(mesh: RunningMesh, tmp_path: Path) -> None:
    document = tmp_path / "node.json"
    fetched = mesh.run("evidence", "fetch", "--role", "node", "--out", str(document))
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    pins = ("--policy", mesh.mesh["policy"], "--mesh", str(mesh.state / "mesh.json"))
    done = teemesh("evidence", "appraise", str(document), *pins)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASS") == 11
    assert "DEVELOPMENT" in done.stdout


def test_the_node_and_its_session_are_verified_and_drained(mesh: RunningMesh, tmp_path: Path) -> None:
    described = ("--mesh", str(mesh.state / "mesh.json"))

    def listed() -> dict[str, str]:
        done = teemesh("providers", "list", "--json", *described)
        assert done.returncode == 0, done.stdout + done.stderr
        (line,) = done.stdout.splitlines()
        said: dict[str, str] = json.loads(line)
        return said

    def becomes(state: str) -> dict[str, str]:
        """The registry's view follows its store."""
        for _ in range(20):
            if (said := listed())["state"] == state:
                return said
        raise AssertionError(said)

    shown = teemesh("providers", "show", "local", *described)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "VERIFIED: 7 of 7 checks passed" in shown.stdout
    session, policy = tmp_path / "session.json", mesh.mesh["policy"]
    identifier = listed()["session_id"]
    kept = teemesh("sessions", "list", "--json", "--current", *described).stdout
    assert [json.loads(line)["session_id"] for line in kept.splitlines()] == [identifier]
    assert teemesh("sessions", "show", identifier, "--out", str(session), *described).returncode == 0
    pins = ("--id", identifier, "--policy", policy, "--ca", mesh.mesh["mesh_ca"])
    done = teemesh("sessions", "verify", str(session), *pins)
    assert done.returncode == 0, done.stdout + done.stderr
    assert teemesh("providers", "drain", "local", "--reason", "a test", *described).returncode == 0
    assert becomes("drained")["drain_reason"] == "a test"
    assert teemesh("providers", "resume", "local", *described).returncode == 0
    becomes("active")


def test_doctor_finds_nothing_wrong(mesh: RunningMesh) -> None:
    done = mesh.run("doctor")
    assert done.returncode == 0, done.stdout


def test_a_second_up_on_the_same_state_is_refused(mesh: RunningMesh) -> None:
    done = mesh.run("up", "--router-port", str(free_port()))
    assert done.returncode == 1
    assert done.stderr.startswith("teemesh: MESH_RUNNING: ")
    assert len(done.stderr.splitlines()) == 1


def test_reset_of_a_running_mesh_is_refused(mesh: RunningMesh) -> None:
    done = mesh.run("reset", "--yes")
    assert done.returncode == 1
    assert done.stderr.startswith("teemesh: MESH_RUNNING: ")


def test_a_taken_router_port_is_one_clear_line() -> None:
    with short_folder() as folder, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = teemesh("up", "--state", str(folder / "s"), "--router-port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith("teemesh: PORT_TAKEN: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_appraisal_that_the_mesh_makes_is_seen_fetched_and_repeated(
    mesh: RunningMesh, watching: subprocess.Popen[str], tmp_path: Path
) -> None:
    said, complaint = watching.communicate(timeout=100)
    assert watching.returncode == 0, said + complaint
    made = json.loads(said)
    assert (made["role"], made["refusal"]) == ("node", None)
    bundle = tmp_path / "bundle.json"
    fetched = mesh.run("evidence", "fetch", "--record", made["record"], "--out", str(bundle))
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    done = teemesh("evidence", "repeat", str(bundle))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASS") == 11
    assert done.stdout.splitlines()[-1] == f"SAME record to the byte: {made['record']}"


def test_a_killed_service_comes_back_and_mesh_json_says_so(mesh: RunningMesh) -> None:
    before = mesh.mesh["services"]["attestation"]["pid"]
    os.kill(before, signal.SIGKILL)
    until_serving(mesh)
    after = mesh.mesh["services"]["attestation"]["pid"]
    assert after
    assert after != before
