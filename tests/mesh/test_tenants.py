"""`teemesh tenants` on a running mesh: what is stored is what routers go by, and nobody keeps an API key."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.https import Https
from tests.mesh.running import RunningMesh, teemesh

pytestmark = pytest.mark.mesh

CHAT = "/v1/chat/completions"


def question(mesh: RunningMesh) -> bytes:
    messages = [{"role": "user", "content": "1"}]
    return json.dumps({"model": mesh.mesh["model"], "messages": messages, "max_tokens": 1}).encode()


def changed(mesh: RunningMesh, *arguments: str) -> Any:
    """Run a command that changes a tenant, as the tenant administrator."""
    signing = ("--sign-key", str(mesh.state / "operators" / "tenant-admin.pem"))
    done = teemesh("tenants", *arguments, *signing, "--json", "--mesh", str(mesh.state / "mesh.json"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(mesh: RunningMesh, *arguments: str) -> str:
    done = teemesh("tenants", *arguments, "--mesh", str(mesh.state / "mesh.json"))
    assert done.returncode == 1, done.stdout
    return done.stderr.removeprefix("teemesh: ").partition(":")[0]


def test_a_key_is_rotated_and_the_tenant_keeps_its_receipts(mesh: RunningMesh, https: Https) -> None:
    made = changed(mesh, "create", "Acme", "--key-id", "old", "--concurrent", "2")
    tenant = made["tenant_id"]
    old = replace(https, api_key=made["api_key"])
    answer = old.post(CHAT, question(mesh))
    assert answer.status == 200
    new = replace(https, api_key=changed(mesh, "rotate-key", tenant, "old", "--key-id", "new")["api_key"])
    receipt = f"/v1/aci/receipts/{answer.headers['X-Receipt-Id']}"
    assert new.get(receipt).status == 200
    changed(mesh, "withdraw-key", tenant, "old")
    # A router hears of the newer record by the key that it has not asked about since.
    later = replace(https, api_key=changed(mesh, "add-key", tenant, "--key-id", "later")["api_key"])
    assert later.get(receipt).status == 200
    assert old.post(CHAT, question(mesh)).status == 401
    metered = [event for event in new.get(receipt).json["event_log"] if event["type"] == "teemesh.usage"]
    assert metered[0]["key"] == "old"
    assert metered[0]["completion_tokens"] >= 1


def test_limits_scopes_and_a_disabled_tenant_are_what_the_router_goes_by(mesh: RunningMesh, https: Https) -> None:
    made = changed(mesh, "create", "Limited", "--requests-per-minute", "1", "--scope", "chat", "--scope", "receipts")
    tenant, client = made["tenant_id"], replace(https, api_key=made["api_key"])
    assert client.post("/v1/completions", question(mesh)).error_type == "key_not_scoped"
    limited = client.post(CHAT, question(mesh))
    assert (limited.status, limited.error_type) == (429, "rate_limited")
    assert 1 <= int(limited.headers["Retry-After"]) <= 60
    assert client.get(f"/v1/aci/receipts/{limited.headers['X-Receipt-Id']}").status == 200
    changed(mesh, "disable", tenant)
    other = replace(https, api_key=changed(mesh, "add-key", tenant, "--key-id", "other")["api_key"])
    for key in (other, client):
        assert key.post(CHAT, question(mesh)).error_type == "tenant_disabled"
    shown = teemesh("tenants", "show", tenant, "--mesh", str(mesh.state / "mesh.json"))
    assert "state    disabled" in shown.stdout
    assert "limits   requests_per_minute 1" in shown.stdout


def test_a_draft_that_is_signed_elsewhere_is_stored_and_listed(mesh: RunningMesh, tmp_path: Path) -> None:
    draft, admin = str(tmp_path / "draft.json"), str(tmp_path / "admin.pem")
    shutil.copy(mesh.state / "operators" / "tenant-admin.pem", admin)
    made = json.loads(teemesh("tenants", "create", "Drafted", "--out", draft, "--json").stdout)
    assert teemesh("tenants", "sign", draft, "--sign-key", admin).returncode == 0
    assert teemesh("tenants", "put", draft, "--mesh", str(mesh.state / "mesh.json")).returncode == 0
    listed = teemesh("tenants", "list", "--json", "--mesh", str(mesh.state / "mesh.json"))
    assert listed.returncode == 0, listed.stderr
    records = {record["tenant_id"]: record for record in map(json.loads, listed.stdout.splitlines())}
    assert records[made["tenant_id"]]["name"] == "Drafted"
    assert {"local", "Drafted"} <= {record["name"] for record in records.values()}
    # What follows a version that is no longer the newest is refused.
    changed(mesh, "disable", made["tenant_id"])
    assert refused(mesh, "put", draft) == "TENANT_VERSION_NOT_NEXT"


def test_what_an_operator_signs_is_no_record(mesh: RunningMesh) -> None:
    operator = str(mesh.state / "operators" / "operator-1.pem")
    assert refused(mesh, "create", "Acme", "--sign-key", operator) == "TENANT_SIGNATURE_INVALID"
    assert refused(mesh, "show", "ff" * 16) == "TENANT_UNKNOWN"


def test_the_local_tenant_may_be_changed_and_its_key_goes_on(mesh: RunningMesh, https: Https) -> None:
    tenant = json.loads((mesh.state / "operators" / "tenant.json").read_bytes())["tenant_id"]
    changed(mesh, "set-limits", tenant, "--requests-per-minute", "100000")
    changed(mesh, "set-limits", tenant, "--requests-per-minute", "none")
    assert https.get("/v1/models").status == 200
