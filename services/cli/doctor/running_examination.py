"""It is responsible for diagnosing a mesh that runs: whether every service says SERVING and the model is served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from libs.errors import MeshError
from services.cli.doctor.findings import Finding
from services.cli.mesh.layout import Layout
from services.cli.mesh.patience import patiently
from services.cli.mesh.ports import HOST, read_ports
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.roster import SERVICES, WITNESS
from services.cli.mesh.served import ask_overdue, ask_served
from services.cli.mesh.status import Access, ask_health, read_mesh
from services.cli.mesh.witnessed import WitnessedAccess, ask_witnessed, read_witnessed_access

_WITNESSED_SECONDS = 10.0


def examine_running(layout: Layout) -> Iterator[Finding]:
    """Ask the services themselves; files alone do not show whether a request would be served."""
    if not layout.mesh_file.exists():
        yield Finding(
            "serving", "the mesh is not ready", f"see which service is not, in its file in {layout.log('kms').parent}"
        )
        return
    try:
        addresses = {role: f"{HOST}:{port}" for role, port in read_ports(layout.ports).items()}
        access = read_mesh(layout.mesh_file, addresses)
        mesh = MeshReader(layout.mesh_file)
        silent = asyncio.run(_not_serving(access))
        url, ca, model = mesh.text("router_url"), mesh.text("router_ca"), mesh.text("model")
    except MeshError as error:
        yield Finding("serving", f"{error.reason}: {error}", "restart it with teemesh up")
        return
    if silent:
        logs = ", ".join(str(layout.log(role)) for role in silent)
        yield Finding("serving", f"not serving: {', '.join(silent)}", f"see why in {logs}")
        return
    try:
        asyncio.run(ask_served(url, ca, model))
    except MeshError as error:
        yield Finding("serving", str(error), f"see why the node is not admitted, in {layout.log('router')}")
        return
    yield Finding("serving", f"every service, and {model}")
    yield _renewed(url, ca, layout)
    yield _witnessed(mesh, layout)


def _renewed(url: str, ca: str, layout: Layout) -> Finding:
    try:
        overdue = asyncio.run(ask_overdue(url, ca))
    except MeshError as error:
        return Finding("keyset", str(error), f"see why in {layout.log('router')}")
    if overdue is None:
        return Finding("keyset", "renewed in time")
    return Finding("keyset", f"not renewed in time: {overdue}", f"see why in {layout.log('router')}")


def _witnessed(mesh: MeshReader, layout: Layout) -> Finding:
    try:
        said = asyncio.run(_ask_witnessed(read_witnessed_access(mesh)))
        return Finding("witness", said.removeprefix("witnessed: "))
    except TimeoutError:
        return Finding("witness", "nothing is witnessed", f"see why in {layout.log(WITNESS)}")
    except MeshError as error:
        return Finding("witness", f"{error.reason}: {error}", f"see why in {layout.log(WITNESS)}")


async def _ask_witnessed(access: WitnessedAccess) -> str:
    """A mesh that became ready this moment may not have shown its first checkpoint to anyone."""
    async with asyncio.timeout(_WITNESSED_SECONDS):
        return await patiently(lambda: ask_witnessed(access))


async def _not_serving(access: Access) -> list[str]:
    answers = await asyncio.gather(*(ask_health(access, role) for role in SERVICES))
    return [answer.role for answer in answers if not answer.serving]
