"""It is responsible for a local mesh's configuration: production's own, with other names, addresses and paths.

What a template says about timing and sizes holds here too, so the local mesh behaves as one in production does. Nothing
else of it does unless it is named here: a text or a table that was written for production is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomli_w

from libs.errors import Code, MeshError
from libs.files import write_durably
from libs.policy.vocabulary import JOB
from services.cli.local.engine import EMBEDDED, LocalEngine
from services.cli.mesh.layout import Layout
from services.cli.mesh.ports import HOST
from services.cli.mesh.roster import DEVTEE, JOBS, SERVICES, SOURCE_ROOT, TRUST_DOMAIN, instance_of, role_of
from services.cli.terminal.inputs import InputUnreadable, read_input

TEMPLATES = SOURCE_ROOT / "deploy" / "config"

_REQUEST_SECONDS = 120

AS_IN_PRODUCTION: Final = object()
"""In place of a change: the local mesh takes this of the template as it is."""

_HEADER = "# Written by teemesh up from deploy/config/{service}.toml at every start: changes here are lost.\n\n"


class TemplateNotPlanned(MeshError):
    """A template has a text or a table of which the local mesh does not say what becomes of it."""

    code = Code.FAILED_PRECONDITION
    reason = "TEMPLATE_NOT_PLANNED"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything of a local mesh is reached, host:port or URL."""

    ports: Mapping[str, int]
    router_port: int

    def of(self, name: str) -> str:
        return f"{HOST}:{self.ports[name]}"

    @property
    def nats_url(self) -> str:
        return f"tls://{self.of('nats')}"

    @property
    def pccs_url(self) -> str:
        return f"http://{self.of('pccs')}"

    @property
    def router(self) -> str:
        return f"{HOST}:{self.router_port}"


def write_devtee_config(layout: Layout, addresses: Addresses, names: Sequence[str] = SERVICES) -> None:
    """Write the software TEE's file: one virtual TD for each process."""
    write_config(
        layout,
        DEVTEE,
        {
            "state_dir": str(layout.devtee),
            "pccs_listen": addresses.of("pccs"),
            "instances": [
                {
                    "name": name,
                    "socket": str(layout.guest_socket(name)),
                    "app_compose": str(layout.compose(role_of(name))),
                }
                for name in names
            ],
        },
    )


def write_service_configs(
    layout: Layout,
    addresses: Addresses,
    policy: Path,
    *,
    certificate_seconds: int | None = None,
    keyset_seconds: int | None = None,
    engine: LocalEngine = EMBEDDED,
    names: Sequence[str] = SERVICES,
    witnesses: Sequence[Mapping[str, Any]] = (),
    templates: Path = TEMPLATES,
) -> None:
    """Write every process's file; each begins with the given signed policy.

    `engine` is the node's. `certificate_seconds` is the life of certificates, `keyset_seconds` of the router's keysets,
    where it is to be another than production's. All `witnesses` are the quorum.
    """
    kms = [name for name in names if role_of(name) == "kms"]
    ledgers = [name for name in names if role_of(name) == "ledger"]
    for service in names:
        member = {
            "instance": instance_of(service),
            "trust_domain": TRUST_DOMAIN,
            # A job serves nobody.
            "listen": f"{HOST}:0" if service in JOBS else addresses.of(service),
            "kms": [addresses.of(name) for name in kms],
            "kms_bootstrap": [addresses.of(f"{name}_bootstrap") for name in kms],
            "attestation_bootstrap": addresses.of("attestation_bootstrap"),
            "state_dir": str(layout.state(service)),
            "guest_socket": str(layout.guest_socket(service)),
            "seed_policy": str(policy),
        }
        own = {**_own(service, layout, addresses, engine), **_members(service, addresses, ledgers)}
        if role_of(service) == "kms" and certificate_seconds is not None:
            own["certificate_seconds"] = certificate_seconds
        if role_of(service) == "router" and keyset_seconds is not None:
            own["keyset"] = {**own["keyset"], **_short_lived(keyset_seconds)}
            own["http"] = {**own["http"], "request_seconds": min(keyset_seconds // 7, _REQUEST_SECONDS)}
        if role_of(service) == "ledger":
            own |= {"witnesses": list(witnesses), "witness_quorum": len(witnesses)}
        write_config(layout, service, {"member": member, **own}, templates)


def _short_lived(keyset_seconds: int) -> dict[str, Any]:
    """Each keyset is replaced in the middle of its life, and lasts for any request that is begun under it."""
    return {"lifetime_seconds": keyset_seconds, "overlap_seconds": keyset_seconds // 2}


def _members(service: str, addresses: Addresses, ledgers: Sequence[str]) -> dict[str, Any]:
    """What the log's members, and those who write to it, must know where it has several."""
    if len(ledgers) == 1:
        return {}
    if role_of(service) == "ledger":
        members = [{"instance": instance_of(name), "address": addresses.of(name)} for name in ledgers]
        return {"replication": {"members": members}}
    if role_of(service) in ("kms", "registry", "router", JOB):
        return {"other_ledgers": [addresses.of(name) for name in ledgers[1:]]}
    return {}


def _own(service: str, layout: Layout, addresses: Addresses, engine: LocalEngine) -> dict[str, Any]:
    """What is a service's own, beside the table that all of them have."""
    events = {
        "nats_url": addresses.nats_url,
        "broker": addresses.of("broker"),
        "outbox": str(layout.state(service) / "outbox"),
    }
    match service:
        case "attestation":
            return {
                "bootstrap_listen": addresses.of("attestation_bootstrap"),
                "pccs_url": addresses.pccs_url,
                # The software TEE answers for its GPUs' vendor at the same address.
                "nras_url": addresses.pccs_url,
                "registry": [addresses.of("registry")],
            }
        case "kms":
            return {
                "bootstrap_listen": addresses.of("kms_bootstrap"),
                "ledger": addresses.of("ledger"),
                "events": events,
            }
        case "kms-2":
            return {
                "bootstrap_listen": addresses.of("kms-2_bootstrap"),
                "ledger": addresses.of("ledger"),
                "events": events,
                "join": {
                    "kms": addresses.of("kms"),
                    "kms_bootstrap": addresses.of("kms_bootstrap"),
                    "order": str(layout.join_order),
                },
            }
        case "broker":
            return {"nats": {"host": HOST, "port": addresses.ports["nats"]}}
        case "ledger" | "ledger-2" | "ledger-3":
            return {
                "data_dir": str(layout.state(service) / "log"),
                "https_listen": addresses.of(f"{service}_http"),
                "dns_names": ["localhost"],
                "ip_addresses": [HOST],
                "events": events,
                "replication": AS_IN_PRODUCTION,
            }
        case "registry":
            return {"ledger": addresses.of("ledger"), "events": events}
        case _ if service in JOBS:
            own = {"ledger": addresses.of("ledger"), "events": events, "sealed": None}
            return {"registry": [addresses.of("registry")], **own}
        case "node":
            return {
                "registry": [addresses.of("registry")],
                "endpoint": addresses.of("node"),
                "region": "local",
                "gpus": AS_IN_PRODUCTION,
                "engine": engine.settings(layout.weights_manifest),
                # No image runs here: see `measured_sources`.
                "reports": {"repo_url": None, "image_digest_of": "sources"},
            }
        case "router":
            return {
                "registry": [addresses.of("registry")],
                "ledger": addresses.of("ledger"),
                "http": {
                    "listen": addresses.router,
                    "grpc_listen": addresses.of("router_grpc"),
                    "allowed_origins": ["*"],
                },
                "keyset": {
                    "dns_names": ["localhost"],
                    "ip_addresses": [HOST],
                    "repo_url": None,
                    # No image runs here: see `measured_sources`.
                    "image_digest_of": "sources",
                },
                "events": events,
                **dict.fromkeys(("receipts", "routing", "metrics"), AS_IN_PRODUCTION),
            }
    raise AssertionError(service)


def write_config(layout: Layout, service: str, changes: Mapping[str, Any], templates: Path = TEMPLATES) -> None:
    """Write one process's file: its template, changed so. Raises `InputUnreadable` or `TemplateNotPlanned`."""
    template = templates / f"{role_of(service)}.toml"
    try:
        production = tomllib.loads(read_input(template).decode())
    except ValueError as error:
        raise InputUnreadable(f"{template} is not TOML: {error}") from error
    try:
        local = changed(production, changes)
    except TemplateNotPlanned as error:
        raise TemplateNotPlanned(f"{template}: {error}") from error
    text = _HEADER.format(service=service) + tomli_w.dumps(local)
    write_durably(layout.config(service), text.encode())


def changed(template: Mapping[str, Any], changes: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Return the template with other values; None leaves a key out. What is no table is replaced whole.

    Of what the changes do not name, numbers and truth values stay, and what is empty, for it names nothing. Raises
    `TemplateNotPlanned` for anything else: it would take effect here, whatever it was written for.
    """
    for name, value in template.items():
        if name not in changes and isinstance(value, str | list | dict) and value:
            raise TemplateNotPlanned(f"the local mesh does not say what becomes of {within}{name}")
    result = {name: value for name, value in template.items() if changes.get(name, AS_IN_PRODUCTION) is not None}
    for name, value in changes.items():
        if value is None or value is AS_IN_PRODUCTION:
            continue
        if isinstance(value, Mapping) and isinstance(result.get(name), Mapping):
            result[name] = changed(result[name], value, f"{within}{name}.")
        else:
            result[name] = value
    return result
