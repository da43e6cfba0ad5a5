from __future__ import annotations

import json
import stat
from pathlib import Path

from services.cli.local.next_steps import next_steps
from services.cli.mesh.layout import Layout
from services.cli.mesh.mesh_file import MeshDescription, remove_mesh_file, write_mesh_file


def description(folder: Path) -> MeshDescription:
    return MeshDescription(
        router_url="https://127.0.0.1:8443",
        router_ca=folder / "ca.pem",
        router_grpc="127.0.0.1:1",
        ledger_grpc="127.0.0.1:2",
        ledger_others=(),
        ledger_http="https://127.0.0.1:3",
        ledger_vkey="mesh.local/ledger/1+00000000+AA==",
        witness_url="https://127.0.0.1:9",
        witness_vkey="witness.mesh.local/w1+00000000+AA==",
        witness_ca=folder / "witness.pem",
        registry_grpc=("127.0.0.1:4",),
        attestation_grpc="127.0.0.1:5",
        kms_grpc=("127.0.0.1:6", "127.0.0.1:8"),
        mesh_ca=folder / "ca.pem",
        operator_cert=folder / "operator.pem",
        operator_key=folder / "operator.key",
        operator_public_keys=("ab" * 32,),
        operator_threshold=2,
        policy=folder / "1.json",
        api_key="sk-teemesh-x",
        model="smollm2-135m",
        vendor_root=folder / "vendor-root.pem",
        pccs_url="http://127.0.0.1:7",
        trust_domain="mesh.local",
        services={"kms": 12, "node": None},
    )


def test_the_file_says_everything_to_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "mesh.json"
    write_mesh_file(path, description(tmp_path))
    mesh = json.loads(path.read_bytes())
    assert mesh["services"] == {"kms": {"pid": 12}, "node": {"pid": None}}
    assert mesh["operator_public_keys"] == ["ab" * 32]
    assert mesh["kms_grpc"] == ["127.0.0.1:6", "127.0.0.1:8"]
    assert Path(mesh["router_ca"]).is_absolute()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    remove_mesh_file(path)
    remove_mesh_file(path)
    assert not path.exists()


def test_the_next_steps_are_a_program_that_compiles(tmp_path: Path) -> None:
    text = next_steps(Layout(tmp_path), description(tmp_path))
    lines = text.splitlines()
    begin, end = lines.index("import ssl"), next(n for n, line in enumerate(lines) if line.startswith("print("))
    compile("\n".join(lines[begin : end + 1]), "next steps", "exec")
    assert f" chat --state {tmp_path} " in text
