"""The files that production starts from, and what a local mesh makes of them, read by the services' own types."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from libs.config import load
from libs.jobs import JobSettings
from libs.policy.vocabulary import JOB
from services.cli.local.config import (
    AS_IN_PRODUCTION,
    TEMPLATES,
    Addresses,
    TemplateNotPlanned,
    changed,
    write_devtee_config,
    write_service_configs,
)
from services.cli.mesh.layout import Layout
from services.cli.mesh.ports import NAMES
from services.cli.mesh.roster import DEVTEE, INSTANCE, JOBS, KMS_REPLICA, LEDGER_OTHERS, SERVICES, WITNESS, processes


def kind(service: str) -> type[Any]:
    if service in (JOB, *JOBS):
        return JobSettings
    module = importlib.import_module(f"services.{service}.config")
    found: type[Any] = module.Settings if service == DEVTEE else module.Config
    return found


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    addresses = Addresses({name: 20_000 + place for place, name in enumerate(NAMES)}, router_port=8443)
    write_devtee_config(layout, addresses)
    write_service_configs(layout, addresses, layout.policy(3))
    return layout


@pytest.mark.parametrize("service", [DEVTEE, *SERVICES, JOB, WITNESS])
def test_the_template_is_a_configuration(service: str) -> None:
    load(TEMPLATES / f"{service}.toml", kind(service))


@pytest.mark.parametrize("service", [*SERVICES, JOB, WITNESS])
def test_the_template_says_everything_that_can_be_said(service: str) -> None:
    """So that an operator sees each key once, with its meaning."""
    template = tomllib.loads((TEMPLATES / f"{service}.toml").read_text())
    assert _unmentioned(kind(service), template) <= {"threads", "log_json", "join", "foreign", "days"}


@pytest.mark.parametrize("service", [DEVTEE, *SERVICES])
def test_the_local_file_is_a_configuration(layout: Layout, service: str) -> None:
    load(layout.config(service), kind(service))


def test_everything_local_is_on_loopback_and_in_the_state_folder(layout: Layout) -> None:
    for service in SERVICES:
        written = layout.config(service).read_text()
        assert "0.0.0.0" not in written  # noqa: S104 - that it is not there is the claim
        assert "internal" not in written
        assert "example.org" not in written
        assert "/etc/teemesh" not in written
        assert "/var/" not in written
        member = load(layout.config(service), kind(service)).member
        assert member.trust_domain == "mesh.local"
        assert member.seed_policy == layout.policy(3)
        assert member.guest_socket == layout.guest_socket(service)


def test_each_service_has_a_platform_of_its_own(layout: Layout) -> None:
    settings = load(layout.config(DEVTEE), kind(DEVTEE))
    assert [instance.name for instance in settings.instances] == list(SERVICES)
    assert len({instance.socket for instance in settings.instances}) == len(SERVICES)


def test_jobs_have_guests_of_one_measurement_and_know_whom_to_write_to(layout: Layout) -> None:
    addresses = Addresses({name: 20_000 + place for place, name in enumerate(NAMES)}, router_port=8443)
    names = (*processes(kms_replica=False, ledger_members=3), *JOBS)
    write_devtee_config(layout, addresses, names)
    write_service_configs(layout, addresses, layout.policy(3), names=names)
    tds = {instance.name: instance for instance in load(layout.config(DEVTEE), kind(DEVTEE)).instances}
    for name in JOBS:
        config = load(layout.config(name), JobSettings)
        assert (config.member.instance, config.member.listen, config.sealed) == (name, "127.0.0.1:0", {})
        assert {config.ledger, *config.other_ledgers} == {addresses.of(one) for one in ("ledger", *LEDGER_OTHERS)}
        assert tds[name].socket == config.member.guest_socket
        assert tds[name].app_compose == layout.compose(JOB)
    assert len({load(layout.config(name), JobSettings).events.outbox for name in JOBS}) == len(JOBS)


def test_a_second_kms_joins_the_first_and_everyone_knows_both(layout: Layout) -> None:
    addresses = Addresses({name: 20_000 + place for place, name in enumerate(NAMES)}, router_port=8443)
    names = processes(kms_replica=True)
    write_devtee_config(layout, addresses, names)
    write_service_configs(layout, addresses, layout.policy(3), names=names)
    both = (addresses.of("kms"), addresses.of(KMS_REPLICA))
    for service in SERVICES:
        assert load(layout.config(service), kind(service)).member.kms == both
    second = load(layout.config(KMS_REPLICA), kind("kms"))
    assert (second.member.instance, second.join.kms, second.join.order) == ("kms-2", both[0], layout.join_order)
    assert load(layout.config("kms"), kind("kms")).join is None
    tds = {instance.name: instance for instance in load(layout.config(DEVTEE), kind(DEVTEE)).instances}
    assert tds[KMS_REPLICA].app_compose == tds["kms"].app_compose
    assert tds[KMS_REPLICA].socket != tds["kms"].socket


def test_the_members_of_a_log_know_each_other_and_whoever_writes_to_it_knows_them_all(layout: Layout) -> None:
    addresses = Addresses({name: 20_000 + place for place, name in enumerate(NAMES)}, router_port=8443)
    names = processes(kms_replica=False, ledger_members=3)
    write_service_configs(layout, addresses, layout.policy(3), names=names)
    expected = {INSTANCE: addresses.of("ledger"), **{name: addresses.of(name) for name in LEDGER_OTHERS}}
    for name in ("ledger", *LEDGER_OTHERS):
        config = load(layout.config(name), kind("ledger"))
        assert {each.instance: each.address for each in config.replication.members} == expected
        assert expected[config.member.instance] == config.member.listen
    for name in ("kms", "registry", "router"):
        config = load(layout.config(name), kind(name))
        assert {config.ledger, *config.other_ledgers} == set(expected.values())
    write_service_configs(layout, addresses, layout.policy(3))
    assert not load(layout.config("ledger"), kind("ledger")).replication.is_group


def test_every_member_of_a_log_is_witnessed_by_the_local_witness_alone(layout: Layout) -> None:
    """Whichever of them writes must be cosigned, and the template's witness is nobody."""
    addresses = Addresses({name: 20_000 + place for place, name in enumerate(NAMES)}, router_port=8443)
    names = processes(kms_replica=False, ledger_members=3)
    [template] = tomllib.loads((TEMPLATES / "ledger.toml").read_text())["witnesses"]
    witness = {**template, "url": f"https://{addresses.of(WITNESS)}"}
    write_service_configs(layout, addresses, layout.policy(3), names=names, witnesses=[witness])
    for name in ("ledger", *LEDGER_OTHERS):
        config = load(layout.config(name), kind("ledger"))
        assert [each.url for each in config.witnesses] == [witness["url"]]
        assert config.witness_quorum == 1


def test_timing_and_sizes_that_a_change_does_not_name_stay() -> None:
    template = {"a": 1, "table": {"x": 1.5, "y": 2}, "list": [1, 2], "gone": 3, "on": True, "none": "", "nobody": []}
    changes = {"table": {"y": 3}, "list": [4], "gone": None, "new": 5}
    stays = {"a": 1, "on": True, "none": "", "nobody": []}
    assert changed(template, changes) == {"table": {"x": 1.5, "y": 3}, "list": [4], "new": 5, **stays}
    assert template["table"] == {"x": 1.5, "y": 2}
    kept = {"table": {"of": {"any": "kind"}}, "text": "as it is"}
    assert changed(kept, dict.fromkeys(kept, AS_IN_PRODUCTION)) == kept
    assert changed({}, {"text": AS_IN_PRODUCTION, "table": None}) == {}


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"backup": "s3://bucket"}, "backup"),
        ({"backup": {"days": 7}}, "backup"),
        ({"backups": [{"days": 7}]}, "backups"),
        ({"peers": ["10.0.0.1:1"]}, "peers"),
        ({"table": {"inner": {"days": 7}}}, "table.inner"),
        ({"table": {"folder": "/var/lib"}}, "table.folder"),
    ],
    ids=["text", "table", "tables", "array", "table in a table", "text in a table"],
)
def test_what_was_written_for_production_alone_is_refused(written: dict[str, Any], named: str) -> None:
    with pytest.raises(TemplateNotPlanned, match=rf"becomes of {named}$"):
        changed({"seconds": 1, **written}, {"table": {}})


@pytest.mark.parametrize("service", SERVICES)
def test_an_example_in_a_template_never_takes_effect_unseen(layout: Layout, tmp_path: Path, service: str) -> None:
    templates = shutil.copytree(TEMPLATES, tmp_path / "templates")
    addresses = Addresses({name: 20_000 + place for place, name in enumerate(NAMES)}, router_port=8443)
    write_service_configs(layout, addresses, layout.policy(3), templates=templates)
    with (templates / f"{service}.toml").open("a") as template:
        template.write('\n[example]\nfolder = "/var/lib/example"\n')
    with pytest.raises(TemplateNotPlanned, match=rf"{service}\.toml: .* example$"):
        write_service_configs(layout, addresses, layout.policy(3), templates=templates)


def _unmentioned(config: type[Any], template: Mapping[str, Any]) -> set[str]:
    missing = set()
    for name, annotation in _hints(config).items():
        if name not in template:
            missing.add(name)
        elif hasattr(annotation, "__dataclass_fields__"):
            missing |= _unmentioned(annotation, template[name])
    return missing


def _hints(config: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}
