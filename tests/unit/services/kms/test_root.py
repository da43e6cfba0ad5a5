from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.events.publish import EventSettings
from libs.tee.dstack import Guest
from libs.tee.dstack_custody import CustodyLinkMissing, CustodyNotProven
from libs.tee.secp256k1 import public_key_of
from libs.tee.signer_recovery import SignatureLengthRefused
from services.devtee.guest import serving_guest
from services.devtee.keys import AppKeys, MockKms
from services.devtee.machine import InstanceIdentity, Machine, VirtualTd
from services.devtee.methods import GuestMethods
from services.kms.__main__ import serve
from services.kms.ca import CERTIFICATE_FILE
from services.kms.config import Config
from services.kms.root import RootNotOpened, open_root
from tests.fakes.joined_mesh import JoinedMesh


async def root_of(mesh: JoinedMesh, td: VirtualTd, *, pinned: MockKms | None = None) -> bytes:
    pin = public_key_of(pinned.root) if pinned else None
    async with mesh.guest(td) as socket, Guest(socket) as guest:
        return (await open_root(guest, mesh.folder, pin)).secret


async def test_the_root_is_born_once_and_sealed(mesh: JoinedMesh) -> None:
    root = await root_of(mesh, mesh.tds["kms"])
    path = mesh.folder / "root.sealed"
    assert len(root) == 32
    assert root not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await root_of(mesh, mesh.tds["kms"]) == root


async def test_another_tee_does_not_open_it_and_does_not_replace_it(mesh: JoinedMesh) -> None:
    root = await root_of(mesh, mesh.tds["kms"])
    for td in (mesh.tds["router"], mesh.boot("kms")):  # Another service; the same code as another app.
        with pytest.raises(RootNotOpened, match="another key"):
            await root_of(mesh, td)
    assert await root_of(mesh, mesh.tds["kms"]) == root


async def test_a_damaged_root_is_refused_and_never_replaced(mesh: JoinedMesh) -> None:
    await root_of(mesh, mesh.tds["kms"])
    path = mesh.folder / "root.sealed"
    sealed = path.read_bytes()
    damages = [sealed[:size] for size in (0, 7, 8, 20, 36, len(sealed) - 1)]
    damages += [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in (0, 7, 8, 19, 20, len(sealed) - 1)]
    for damaged in [*damages, sealed + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(RootNotOpened):
            await root_of(mesh, mesh.tds["kms"])
        assert path.read_bytes() == damaged


async def test_a_lost_root_is_not_replaced_while_its_ca_is_there(mesh: JoinedMesh) -> None:
    await root_of(mesh, mesh.tds["kms"])
    (mesh.folder / "root.sealed").unlink()
    (mesh.folder / CERTIFICATE_FILE).write_bytes(b"the CA that the root made")
    with pytest.raises(RootNotOpened, match="is gone"):
        await root_of(mesh, mesh.tds["kms"])
    assert not (mesh.folder / "root.sealed").exists()


def now() -> int:
    return int(time.time())


async def test_the_root_is_sealed_and_opened_under_a_key_of_the_pinned_dstack_kms(mesh: JoinedMesh) -> None:
    root = await root_of(mesh, mesh.tds["kms"], pinned=mesh.machine.kms)
    assert await root_of(mesh, mesh.tds["kms"], pinned=mesh.machine.kms) == root


async def test_a_pin_that_is_added_later_opens_the_same_root(mesh: JoinedMesh) -> None:
    root = await root_of(mesh, mesh.tds["kms"])
    assert await root_of(mesh, mesh.tds["kms"], pinned=mesh.machine.kms) == root


def of_another_kms(_: Machine, keys: AppKeys) -> AppKeys:
    """What a host's own dstack KMS gives the same application."""
    return MockKms.create(now()).app_keys(keys.app_id, now())


def of_another_application(machine: Machine, keys: AppKeys) -> AppKeys:
    """Genuine keys of the pinned KMS, of an application that the host runs too, and so knows."""
    return machine.kms.app_keys(bytes(20), now())


def with_the_genuine_link(_: Machine, keys: AppKeys) -> AppKeys:
    """The host's own application root beside the signature over the genuine one."""
    return replace(keys, root=b"\x01" * 32)


def without_a_kms(_: Machine, keys: AppKeys) -> AppKeys:
    """What a guest with a local key provider has."""
    return replace(keys, kms_signature=b"")


def with_a_cut_link(_: Machine, keys: AppKeys) -> AppKeys:
    return replace(keys, kms_signature=keys.kms_signature[:64])


@pytest.mark.parametrize(
    ("bend", "refusal"),
    [
        (of_another_kms, CustodyNotProven),
        (of_another_application, CustodyNotProven),
        (with_the_genuine_link, CustodyNotProven),
        (without_a_kms, CustodyLinkMissing),
        (with_a_cut_link, SignatureLengthRefused),
    ],
)
async def test_under_a_key_that_the_pinned_dstack_kms_did_not_give_nothing_is_sealed(
    mesh: JoinedMesh, bend: Callable[[Machine, AppKeys], AppKeys], refusal: type[MeshError]
) -> None:
    td = mesh.boot("kms")
    td.keys = bend(mesh.machine, td.keys)
    with pytest.raises(refusal):
        await root_of(mesh, td, pinned=mesh.machine.kms)
    assert not (mesh.folder / "root.sealed").exists()


async def test_under_a_key_that_the_pinned_dstack_kms_did_not_give_nothing_is_opened(mesh: JoinedMesh) -> None:
    td = mesh.boot("kms")
    td.keys = of_another_kms(mesh.machine, td.keys)
    await root_of(mesh, td)
    sealed = (mesh.folder / "root.sealed").read_bytes()
    with pytest.raises(CustodyNotProven):
        await root_of(mesh, td, pinned=mesh.machine.kms)
    assert (mesh.folder / "root.sealed").read_bytes() == sealed


async def test_a_chain_of_another_key_than_the_one_given_is_refused(mesh: JoinedMesh, tmp_path: Path) -> None:
    methods = GuestMethods(mesh.tds["kms"], now)
    genuine = methods.table["GetKey"]
    methods.table = {**methods.table, "GetKey": lambda request: {**genuine(request), "key": "01" * 32}}
    socket = tmp_path / "bent.sock"
    async with serving_guest(socket, methods), Guest(socket) as guest:
        with pytest.raises(CustodyNotProven):
            await open_root(guest, mesh.folder, public_key_of(mesh.machine.kms.root))
    assert not (mesh.folder / "root.sealed").exists()


async def test_a_service_that_is_measured_with_a_pin_ends_before_it_takes_another_key(mesh: JoinedMesh) -> None:
    compose = jcs.loads_object(mesh.tds["kms"].app_compose.encode())
    compose["teemesh"]["dstack_kms_root"] = public_key_of(mesh.machine.kms.root).hex()
    td = mesh.machine.boot(jcs.dumps(compose), InstanceIdentity.random(), now())
    td.keys = of_another_kms(mesh.machine, td.keys)
    async with mesh.guest(td) as socket:
        member = mesh.settings("kms", "1", socket)
        events = EventSettings(nats_url="tls://127.0.0.1:9", broker="127.0.0.1:9", outbox=mesh.folder / "outbox")
        with pytest.raises(CustodyNotProven):
            await serve(Config(member, events, ledger="127.0.0.1:9", bootstrap_listen="127.0.0.1:0"))
    assert not (member.state_dir / "root.sealed").exists()
