"""Many vaults are opened several at once, and none holds up another."""

from __future__ import annotations

import asyncio

from libs.errors import MeshError
from libs.events.vault_opening import AT_ONCE, VaultLate, open_each

PATIENCE_SECONDS = 60.0
SHORT_SECONDS = 0.05


class Refused(MeshError):
    reason = "REFUSED_FOR_A_TEST"


class Vaults:
    """Vaults of which some never open, and some are refused."""

    def __init__(self, silent: frozenset[str] = frozenset(), refused: frozenset[str] = frozenset()) -> None:
        self._silent = silent
        self._refused = refused
        self._opening = 0
        self.most = 0

    async def open(self, tenant: str) -> str:
        self._opening += 1
        self.most = max(self.most, self._opening)
        try:
            if tenant in self._silent:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
        finally:
            self._opening -= 1
        if tenant in self._refused:
            raise Refused("not this one")
        return f"vault of {tenant}"


async def opened_of(tenants: list[str], vaults: Vaults, seconds: float = PATIENCE_SECONDS) -> dict[str, str]:
    """What came of each: its vault, or the reason why there is none."""
    outcomes: dict[str, str] = {}

    async def opened(tenant: str, vault: str | MeshError) -> None:
        outcomes[tenant] = vault.reason if isinstance(vault, MeshError) else vault

    async with asyncio.timeout(PATIENCE_SECONDS):
        await open_each(tenants, vaults.open, opened, seconds=seconds)
    return outcomes


async def test_no_more_than_so_many_are_asked_for_at_once() -> None:
    tenants, vaults = [str(number) for number in range(3 * AT_ONCE)], Vaults()
    assert await opened_of(tenants, vaults) == {tenant: f"vault of {tenant}" for tenant in tenants}
    assert vaults.most == AT_ONCE


async def test_those_that_never_open_are_late_and_give_their_place_to_the_next() -> None:
    silent = [f"silent {number}" for number in range(2 * AT_ONCE)]
    outcomes = await opened_of([*silent, "other"], Vaults(silent=frozenset(silent)), SHORT_SECONDS)
    assert outcomes == {**dict.fromkeys(silent, VaultLate.reason), "other": "vault of other"}


async def test_one_that_is_refused_says_why_and_ends_nothing() -> None:
    outcomes = await opened_of(["one", "two"], Vaults(refused=frozenset({"one"})))
    assert outcomes == {"one": Refused.reason, "two": "vault of two"}


async def test_nobody_is_asked_where_there_is_nobody() -> None:
    assert await opened_of([], Vaults()) == {}
