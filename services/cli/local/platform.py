"""It is responsible for what a local mesh must know of its platform before that starts: the root of its dstack KMS.

The mesh KMS's app-compose pins that root, and the software TEE measures app-composes when it starts. So one that has
never run is first asked to make its machine and to publish what it is.
"""

from __future__ import annotations

import asyncio

from libs.errors import Code, MeshError
from libs.process import tethered
from services.cli.local.children import last_line
from services.cli.mesh.layout import Layout
from services.cli.mesh.roster import DEVTEE, SOURCE_ROOT, command
from services.cli.policy.reference import read_reference

_MAKE_SECONDS = 60.0


class PlatformNotMade(MeshError):
    """The software TEE did not make its machine, or does not say what it is."""

    code = Code.UNAVAILABLE
    reason = "PLATFORM_NOT_MADE"


async def dstack_kms_root(layout: Layout) -> bytes:
    """Return the platform's dstack KMS root; its configuration must be there.

    Raises `PlatformNotMade` and what reading the reference values raises.
    """
    if not layout.reference.exists():
        await _make_machine(layout)
    root = read_reference(layout.reference).kms_public_key
    if root is None:
        raise PlatformNotMade(f"{layout.reference} has no kms_public_key: remove the file, and it is made again")
    return root


async def _make_machine(layout: Layout) -> None:
    log = layout.log(DEVTEE)
    argv = tethered([*command(DEVTEE, layout.config(DEVTEE)), "--machine-only"])
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=SOURCE_ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            async with asyncio.timeout(_MAKE_SECONDS):
                code = await process.wait()
        except TimeoutError as error:
            raise PlatformNotMade(f"devtee made no machine in {_MAKE_SECONDS:.0f} s: see {log}") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if code != 0:
        raise PlatformNotMade(f"devtee made no machine: {last_line(log) or f'exit status {code}'}")
