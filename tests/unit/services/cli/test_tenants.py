"""What each command makes of a tenant's record. Nothing of a key that is made is in it but the digest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.policy.tenant_record import MAX_KEYS, ApiKey, Limits, TenantRecord, TenantRecordMalformed
from libs.policy.tenants import api_key_digest, sign_tenant, verify_tenant, verify_tenant_successor
from services.cli.mesh.operators import make_key, public_key
from services.cli.tenants.changes import (
    ApiKeyIdTaken,
    ApiKeyIdUnknown,
    Changed,
    NewKey,
    NothingChanges,
    add_key,
    create,
    rotate_key,
    set_disabled,
    set_limits,
    withdraw_key,
)
from services.cli.tenants.command import add_parser
from services.cli.terminal.inputs import InputUnreadable, OutputExists

OLD = ApiKey("old", "11" * 32, ("chat",), 2_000_000_000, ("qwen3",))
RECORD = TenantRecord("ab" * 16, 4, "Acme", (OLD,), Limits(concurrent=3))
ADMIN = Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    "change",
    [
        lambda: add_key(RECORD, NewKey("new")),
        lambda: rotate_key(RECORD, "old", "new", None),
        lambda: withdraw_key(RECORD, "old"),
        lambda: set_limits(RECORD, {"requests_per_minute": 5}),
        lambda: set_disabled(RECORD, disabled=True),
    ],
)
def test_every_change_is_the_next_version_of_the_same_tenant(change: Callable[[], Changed]) -> None:
    changed = change()
    verify_tenant_successor(RECORD, changed.record)
    signed = sign_tenant(changed.record, ADMIN)
    assert verify_tenant(signed, public_key(ADMIN)) == changed.record
    if changed.api_key is not None:
        assert changed.record.keys[-1].sha256 == api_key_digest(changed.api_key)
        assert changed.api_key.encode() not in signed


def test_a_tenant_is_made_with_a_key_and_a_random_id() -> None:
    limits = Limits(burst=2, requests_per_minute=3)
    one, other = (create("Acme", NewKey("first", scopes=("chat",)), limits) for _ in range(2))
    verify_tenant_successor(None, one.record)
    assert one.record.tenant_id != other.record.tenant_id
    assert one.api_key != other.api_key
    assert (one.record.keys[0].id, one.record.keys[0].scopes) == ("first", ("chat",))


def test_a_new_key_is_for_the_same_as_the_old_one_which_stays() -> None:
    old, new = rotate_key(RECORD, "old", "new", 2_100_000_000).record.keys
    assert old == OLD
    assert new == replace(OLD, id="new", sha256=new.sha256, not_after=2_100_000_000)


def test_limits_that_are_not_given_stay_and_none_ends_one() -> None:
    more = set_limits(RECORD, {"requests_per_minute": 5}).record
    assert more.limits == Limits(requests_per_minute=5, concurrent=3)
    assert set_limits(more, {"concurrent": None}).record.limits == Limits(requests_per_minute=5)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda: add_key(RECORD, NewKey("old")), ApiKeyIdTaken),
        (lambda: add_key(replace(RECORD, keys=keys(MAX_KEYS)), NewKey("new")), ApiKeyIdTaken),
        (lambda: add_key(RECORD, NewKey("a b")), TenantRecordMalformed),
        (lambda: rotate_key(RECORD, "gone", "new", None), ApiKeyIdUnknown),
        (lambda: withdraw_key(RECORD, "gone"), ApiKeyIdUnknown),
        (lambda: set_limits(RECORD, {}), NothingChanges),
        (lambda: set_limits(RECORD, {"concurrent": 3}), NothingChanges),
        (lambda: set_limits(RECORD, {"burst": 3}), TenantRecordMalformed),
        (lambda: set_disabled(RECORD, disabled=False), NothingChanges),
        (lambda: create("two\nlines", NewKey("first"), Limits()), TenantRecordMalformed),
    ],
)
def test_what_makes_no_record_is_refused(change: Callable[[], Changed], refusal: type[MeshError]) -> None:
    with pytest.raises(refusal):
        change()


def keys(number: int) -> tuple[ApiKey, ...]:
    return tuple(ApiKey(f"k{each}", f"{each:064x}") for each in range(number))


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["tenants", *arguments])
    code: int = args.run(args)
    return code


def test_a_draft_is_signed_elsewhere_and_the_key_is_shown_once_and_kept_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft, key_file = tmp_path / "draft.json", tmp_path / "admin.pem"
    admin = make_key(key_file)
    assert run("create", "Acme", "--scope", "chat", "--requests-per-minute", "60", "--out", str(draft), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert run("sign", str(draft), "--sign-key", str(key_file)) == 0
    record = verify_tenant(draft.read_bytes(), public_key(admin))
    assert (record.tenant_id, record.version) == (said["tenant_id"], 1)
    assert record.keys == (ApiKey("first", api_key_digest(said["api_key"]), scopes=("chat",)),)
    assert record.limits == Limits(requests_per_minute=60)
    assert said["api_key"] not in capsys.readouterr().out
    assert all(said["api_key"].encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_draft_replaces_no_file(tmp_path: Path) -> None:
    draft = tmp_path / "draft.json"
    draft.write_bytes(b"signed by somebody")
    with pytest.raises(OutputExists):
        run("create", "Acme", "--out", str(draft))
    assert draft.read_bytes() == b"signed by somebody"


@pytest.mark.parametrize("content", [b'{"record":{}}', b'{"record":{},"signature":""}', b"[]", b"{"])
def test_what_is_no_draft_is_not_signed(tmp_path: Path, content: bytes) -> None:
    draft, key_file = tmp_path / "draft.json", tmp_path / "admin.pem"
    make_key(key_file)
    draft.write_bytes(content)
    with pytest.raises((InputUnreadable, TenantRecordMalformed)):
        run("sign", str(draft), "--sign-key", str(key_file))
    assert draft.read_bytes() == content


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "Acme"),
        ("create", "Acme", "--out", "a", "--sign-key", "b"),
        ("create", "Acme", "--out", "a", "--scope", "everything"),
        ("create", "Acme", "--out", "a", "--concurrent", "0"),
        ("show", "Acme"),
        ("withdraw-key", "../x", "old", "--out", "a"),
    ],
)
def test_what_cannot_be_meant_is_no_command(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run(*arguments)
