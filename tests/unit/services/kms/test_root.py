from __future__ import annotations

import stat

import pytest

from libs.tee.dstack import Guest
from services.devtee.machine import VirtualTd
from services.kms.ca import CERTIFICATE_FILE
from services.kms.root import RootNotOpened, open_root
from tests.fakes.joined_mesh import JoinedMesh


async def root_of(mesh: JoinedMesh, td: VirtualTd) -> bytes:
    async with mesh.guest(td) as socket, Guest(socket) as guest:
        return await open_root(guest, mesh.folder)


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
        with pytest.raises(RootNotOpened, match="another CVM"):
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
