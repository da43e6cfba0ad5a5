"""A mesh as its operators set it up for these tests, and who asks it.

This alone of the folder uses the product's own code, for what operators do with their keys: the tests themselves know
the service by its wire.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from libs.policy.tenant_record import TenantRecord, unrestricted
from libs.policy.tenants import api_key_digest
from tests.fakes.pki import ThrowawayCa
from tests.mesh.aci.provider import Provider, serving
from tests.mesh.aci.wire import ATTESTATION, CHAT, SESSIONS, Router
from tests.mesh.operating import publish, put_tenant
from tests.mesh.patience import until
from tests.mesh.running import RunningMesh, running_mesh

PLAIN_MODEL = "plain-model"
"""Served by the provider, which nobody can verify, under the same name."""
RENAMED_MODEL = "renamed-model"
THERE_NAMED = "its-name-over-there"
UNPROVEN_MODEL = "unproven-model"
"""Served by nobody but a provider that policy wants verified, and that has nothing to show."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody with an API key."""

    tenant_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the same mesh said before its router and its node were started anew."""

    keyset: bytes
    """The report of then."""
    session_id: str
    receipt_id: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One service, and what its tests need to know of what is behind it."""

    mesh: RunningMesh
    router: Router
    owner: Tenant
    """Policy says nothing of it, so it is served by verified nodes only."""
    other: Tenant
    guest: Tenant
    """Policy lets it be served by whoever proves nothing."""
    provider: Provider
    earlier: Earlier

    @property
    def model(self) -> str:
        """Served by the mesh's own node."""
        return str(self.mesh.mesh["model"])

    @property
    def vendor_root(self) -> bytes:
        return self.mesh.file("vendor_root")

    def add_keys(self, tenant: Tenant, version: int, *keys: str) -> None:
        """Have a tenant's record say that it has these keys and no others."""
        _store(self.mesh, tenant.tenant_id, version, keys)


def new_tenant(mesh: RunningMesh) -> Tenant:
    tenant = Tenant(secrets.token_hex(16), "sk-teemesh-" + secrets.token_urlsafe(32))
    _store(mesh, tenant.tenant_id, 1, (tenant.key,))
    return tenant


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """Run a mesh with a provider beside it. Router and node have been killed once, and are back."""
    ca = ThrowawayCa()
    authorities = folder / "authorities.pem"
    authorities.write_bytes(ca.pem)
    with (
        serving(*ca.leaf(None, "localhost", ip="127.0.0.1"), folder) as provider,
        running_mesh(folder, environment={"SSL_CERT_FILE": str(authorities)}) as mesh,
    ):
        described = mesh.mesh
        router = Router(described["router_url"], described["router_ca"])
        guest = new_tenant(mesh)
        plain = {
            "name": "plain",
            "kind": "openai",
            "origin": provider.origin,
            "models": {PLAIN_MODEL: PLAIN_MODEL, RENAMED_MODEL: THERE_NAMED},
            "best_effort": True,
            "tenants": [guest.tenant_id],
        }
        unproven = {
            "name": "unproven",
            "kind": "aci",
            "origin": provider.origin,
            "models": {UNPROVEN_MODEL: UNPROVEN_MODEL},
            "session_claims": [],
            "measurements": json.loads(mesh.file("policy"))["policy"]["roles"]["node"]["measurements"],
        }
        constraints = {guest.tenant_id: {"verified_only": False}}
        owner = Tenant("", described["api_key"])
        earlier = _started_anew(mesh, router, owner)
        publish(mesh, {"foreign_providers": [plain, unproven], "constraints": constraints}, folder)
        stage = Stage(mesh, router, owner, new_tenant(mesh), guest, provider, earlier)
        until(lambda: _is_served(router, guest, PLAIN_MODEL) and _is_served(router, owner, stage.model), mesh.logs)
        yield stage


def _started_anew(mesh: RunningMesh, router: Router, owner: Tenant) -> Earlier:
    """Kill what holds the keys that clients see, and wait until the mesh serves again."""
    report = router.get(ATTESTATION)
    answer = router.post(CHAT, _question(mesh.mesh["model"]), key=owner.key)
    assert answer.status == 200
    (session,) = router.get(SESSIONS).json["sessions"]
    for name in ("router", "node"):
        os.kill(mesh.mesh["services"][name]["pid"], signal.SIGKILL)
    until(lambda: _served_by_another(router, session["session_id"]), mesh.logs)
    return Earlier(report.body, session["session_id"], answer.receipt_id)


def _served_by_another(router: Router, before: str) -> bool:
    try:
        sessions = router.get(SESSIONS).json["sessions"]
    except OSError:
        return False
    return bool(sessions) and all(session["session_id"] != before for session in sessions)


def _is_served(router: Router, tenant: Tenant, model: str) -> bool:
    return router.post(CHAT, _question(model), key=tenant.key).status == 200


def _question(model: str) -> bytes:
    asked = {"model": model, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
    return json.dumps(asked).encode()


def _store(mesh: RunningMesh, tenant_id: str, version: int, keys: tuple[str, ...]) -> None:
    digests = tuple(sorted(api_key_digest(key) for key in keys))
    record = TenantRecord(tenant_id, version=version, name=f"tenant-{tenant_id[:8]}", keys=unrestricted(*digests))
    asyncio.run(put_tenant(mesh, record))
