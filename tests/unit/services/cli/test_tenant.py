from __future__ import annotations

import stat
from pathlib import Path

import pytest

from libs.policy.tenants import api_key_digest
from services.cli.local.tenant import ensure_tenant
from services.cli.mesh.layout import Layout
from services.cli.terminal.inputs import InputUnreadable


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    return layout


def test_the_tenant_is_the_same_after_a_restart(layout: Layout) -> None:
    tenant = ensure_tenant(layout)
    assert ensure_tenant(layout) == tenant
    assert tenant.api_key.startswith("sk-teemesh-")
    assert stat.S_IMODE(layout.tenant.stat().st_mode) == 0o600


def test_the_record_holds_a_digest_and_no_key(layout: Layout) -> None:
    tenant = ensure_tenant(layout)
    assert tenant.record.api_key_sha256 == (api_key_digest(tenant.api_key),)
    assert tenant.api_key not in str(tenant.record.value)


def test_a_damaged_tenant_file_is_said_and_kept(layout: Layout) -> None:
    layout.tenant.write_text('{"tenant_id": "x"}')
    with pytest.raises(InputUnreadable, match="remove it"):
        ensure_tenant(layout)
