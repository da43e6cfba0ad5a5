"""It is responsible for opening many tenants' vaults: several at once, each in a time of its own, so that one that
answers late holds up nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from libs.errors import Code, MeshError
from libs.events.vault import VaultKey

AT_ONCE = 32
"""So many vaults are asked for at once."""
OPENING_SECONDS = 5.0
"""How long one may take."""

K = TypeVar("K")

OpenVault = Callable[[str], Awaitable[VaultKey]]
"""Returns the current vault key of a tenant, by its random id."""


class VaultLate(MeshError):
    """The vault did not open in the time that one has."""

    code = Code.DEADLINE_EXCEEDED
    reason = "VAULT_LATE"


async def open_each(
    tenants: Sequence[str],
    vault: Callable[[str], Awaitable[K]],
    opened: Callable[[str, K | MeshError], Awaitable[None]],
    *,
    seconds: float = OPENING_SECONDS,
) -> None:
    """Open the vault of each, in about this order, and tell `opened` what came of it.

    `vault` returns a vault's key or raises a `MeshError`. The next one is opened once `opened` has returned.
    """
    left = iter(tenants)

    async def open_next() -> None:
        for tenant in left:
            await opened(tenant, await _open(tenant, vault, seconds))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(AT_ONCE, len(tenants))):
            tasks.create_task(open_next())


async def _open(tenant: str, vault: Callable[[str], Awaitable[K]], seconds: float) -> K | MeshError:
    try:
        async with asyncio.timeout(seconds):
            return await vault(tenant)
    except TimeoutError:
        return VaultLate(f"the tenant's vault did not open within {seconds:g} s")
    except MeshError as error:
        return error
