from __future__ import annotations

import stat
from pathlib import Path

import pytest

from libs import jcs
from services.devtee.state import InstanceNameInvalid, StateCorrupt, StateInUse, holding


def test_a_restart_keeps_the_machine_and_its_instances(tmp_path: Path, now: int) -> None:
    with holding(tmp_path / "state") as state:
        machine, identity = state.machine(now), state.identity("node-1")
        assert state.identity("node-2") != identity
    drafts = [tmp_path / "state" / f".{name}.0123456789abcdef" for name in ("machine.json", "gpus.json")]
    drafts.append(tmp_path / "state" / "instances" / ".node-1.json.0123456789abcdef")
    for draft in drafts:
        draft.write_bytes(b"half")
    with holding(tmp_path / "state") as state:
        assert not any(draft.exists() for draft in drafts)
        again = state.machine(now + 1)
        assert again.vendor_root == machine.vendor_root
        assert again.pki.pck_chain == machine.pki.pck_chain
        assert again.device_id == machine.device_id
        assert again.kms.root == machine.kms.root
        assert again.kms.provider == machine.kms.provider
        assert state.identity("node-1") == identity


def test_gpus_from_before_token_keys_were_certified_get_an_authority_once(tmp_path: Path, now: int) -> None:
    with holding(tmp_path) as state:
        machine = state.machine(now)
    path = tmp_path / "gpus.json"
    document = jcs.loads_object(path.read_bytes())
    for name in ("authority", "certificate"):
        del document["gpus"]["nras"][name]
    path.write_bytes(jcs.dumps(document))
    with holding(tmp_path) as state:
        upgraded = state.machine(now + 1).gpus.nras
    assert upgraded.key_id == machine.gpus.nras.key_id
    assert upgraded.authority.root.der != machine.gpus.nras.authority.root.der
    with holding(tmp_path) as state:
        assert state.machine(now + 2).gpus.nras.authority.root.der == upgraded.authority.root.der


def test_secrets_are_the_owners_alone(tmp_path: Path, now: int) -> None:
    with holding(tmp_path / "state") as state:
        state.machine(now)
        state.identity("node-1")
    for path in (tmp_path / "state").rglob("*.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_directory_left_before_its_first_file_is_used(tmp_path: Path, now: int) -> None:
    """What `kill -9` leaves: the folder, the lock, and perhaps a temporary file that was never renamed."""
    (tmp_path / "lock").touch()
    (tmp_path / ".machine.json.tmp").write_bytes(b'{"v":')
    with holding(tmp_path) as state:
        state.machine(now)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"v":2}', b'{"v":1}', b'{"v":1,"ppid":"00"}'])
def test_a_damaged_machine_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes, now: int) -> None:
    (tmp_path / "machine.json").write_bytes(content)
    with holding(tmp_path) as state, pytest.raises(StateCorrupt):
        state.machine(now)
    assert (tmp_path / "machine.json").read_bytes() == content


def test_a_key_that_is_not_its_certificates_is_refused(tmp_path: Path, now: int) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        with holding(folder) as state:
            state.machine(now)
    one, two = ((folder / "machine.json").read_text() for folder in folders)
    certificate = one.index('"kms_ca":{"certificate":'), one.index('"key":', one.index('"kms_ca"'))
    other = two.index('"kms_ca":{"certificate":'), two.index('"key":', two.index('"kms_ca"'))
    (tmp_path / "one" / "machine.json").write_text(
        one[: certificate[0]] + two[other[0] : other[1]] + one[certificate[1] :]
    )
    with holding(tmp_path / "one") as state, pytest.raises(StateCorrupt):
        state.machine(now)


def test_a_lost_machine_file_does_not_become_another_machine(tmp_path: Path, now: int) -> None:
    with holding(tmp_path) as state:
        state.machine(now)
        state.identity("node-1")
        (tmp_path / "machine.json").unlink()
        with pytest.raises(StateCorrupt, match="is gone"):
            state.machine(now)


def test_a_damaged_instance_is_refused(tmp_path: Path, now: int) -> None:
    with holding(tmp_path) as state:
        state.identity("node-1")
        (tmp_path / "instances" / "node-1.json").write_bytes(b'{"v":1,"app_id":"00","seed":""}')
        with pytest.raises(StateCorrupt):
            state.identity("node-1")


@pytest.mark.parametrize("name", ["", "../node", "Node", "a/b", "-a"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with holding(tmp_path) as state, pytest.raises(InstanceNameInvalid):
        state.identity(name)


def test_two_processes_cannot_hold_one_directory(tmp_path: Path) -> None:
    with holding(tmp_path), pytest.raises(StateInUse), holding(tmp_path):
        pass
