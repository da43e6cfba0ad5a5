from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.cli.mesh.ports import HOST, NAMES, PortTaken, assign, is_free, read_ports, require_router_port


def test_ports_are_distinct_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    chosen = assign(path, reserved=1)
    assert set(chosen) == set(NAMES)
    assert len(set(chosen.values())) == len(NAMES)
    assert dict(assign(path, reserved=1)) == dict(chosen) == dict(read_ports(path))


def test_only_a_taken_port_is_chosen_anew(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    before = assign(path, reserved=1)
    with socket.create_server((HOST, before["kms"])):
        after = assign(path, reserved=1, linger_seconds=0)
    assert after["kms"] != before["kms"]
    assert {name: port for name, port in after.items() if name != "kms"} == {
        name: port for name, port in before.items() if name != "kms"
    }


def test_the_clients_port_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    before = assign(path, reserved=1)
    assert before["node"] not in assign(path, reserved=before["node"]).values()


def test_a_damaged_file_of_ports_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    path.write_text('{"kms": "x", "stranger": 1, "node": 700000}')
    assert read_ports(path) == {}
    assert set(assign(path, reserved=1)) == set(NAMES)


def test_a_taken_router_port_is_refused_in_one_line() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(PortTaken, match=str(port)) as refusal:
            require_router_port(port, linger_seconds=0)
    assert refusal.value.reason == "PORT_TAKEN"
