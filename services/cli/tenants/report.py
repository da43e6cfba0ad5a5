"""It is responsible for tenants' records as people and programs read them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from libs.policy.tenant_record import ApiKey, TenantRecord
from services.cli.tenants.access import Listed
from services.cli.terminal.words import Moment, plain, shown


def record_json(record: TenantRecord) -> dict[str, Any]:
    """Return all of a record, in the members of its second form."""
    return {
        "tenant_id": record.tenant_id,
        "version": record.version,
        "name": record.name,
        "disabled": record.disabled,
        "limits": record.limits.value,
        "keys": [key.value for key in record.keys],
    }


def listed_json(listed: Listed) -> dict[str, Any]:
    if listed.record is None:
        return {"refused": "" if listed.refusal is None else listed.refusal.reason}
    return record_json(listed.record)


def print_tenants(tenants: list[Listed], console: Console) -> None:
    """Print a line for each."""
    table = Table("tenant", "name", "version", "keys", "limits", "state", box=None)
    for listed in tenants:
        record = listed.record
        if record is None:
            reason = "" if listed.refusal is None else listed.refusal.reason
            table.add_row("", "", "", "", "", f"NOT GENUINE: {reason}")
            continue
        table.add_row(
            record.tenant_id,
            plain(record.name),
            str(record.version),
            ", ".join(key.id for key in record.keys) or "none",
            _limits(record),
            "disabled" if record.disabled else "",
        )
    console.print(table)


def print_tenant(record: TenantRecord, now: float, console: Console) -> None:
    """Print all of one."""
    for name, value in (
        ("tenant", record.tenant_id),
        ("name", plain(record.name)),
        ("version", str(record.version)),
        ("state", "disabled" if record.disabled else "enabled"),
        ("limits", _limits(record)),
    ):
        console.out(f"{name:<9}{value}", highlight=False)
    for key in record.keys:
        console.out(f"key      {_key(key, now)}", highlight=False)


def _limits(record: TenantRecord) -> str:
    return ", ".join(f"{name} {number}" for name, number in record.limits.value.items()) or "none"


def _key(key: ApiKey, now: float) -> str:
    parts = [key.id, f"sha256 {key.sha256}"]
    for name, allowed in (("scopes", key.scopes), ("models", key.models)):
        if allowed is not None:
            parts.append(f"{name} {plain(', '.join(allowed)) or 'none'}")
    if key.not_after is not None:
        parts.append(f"{'expired' if now >= key.not_after else 'until'} {shown(Moment(key.not_after))}")
    return "; ".join(parts)
