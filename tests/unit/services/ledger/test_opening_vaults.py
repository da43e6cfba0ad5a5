"""A writer gives out no vault's key as soon as another may have followed it: that one may have erased the vault."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from teemesh.ledger.v1 import ledger_pb2 as pb

from libs.identity.lease import Lease
from libs.rpc.policies import Caller, adopt_caller
from services.ledger.growth import Growth, LogBehind
from services.ledger.keys import ReleasedKey
from services.ledger.serving.servicer import Ledger, LedgerServicer, Reading
from services.ledger.storage.keyring import KeyringFile
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.vaults import Vaults

from .writers import Keys

TENANT = "ab" * 16
_NOTHING = cast(Any, None)
"""What a call that is refused never comes to."""


class Writer:
    """A writer's vaults as they are served, and whether anybody else may write by now."""

    def __init__(self, folder: Path) -> None:
        self.is_heard = True
        self.keys = Keys()
        file, key = KeyringFile(folder, b"\x01" * 32), ReleasedKey(1, b"\x02" * 32)
        self.vaults = Vaults(file, file.load(key.key), key, self.keys, Erasures())
        growth = Growth(0, bytes(32), is_all=lambda: self.is_heard)
        reading = Reading(growth, *[_NOTHING] * 7)
        self._servicer = LedgerServicer()
        self._servicer.begin(Ledger(self.vaults, _NOTHING, _NOTHING, _NOTHING, reading))

    async def open(self) -> None:
        """Ask for a tenant's key, as a router."""
        lease = Lease(_NOTHING, _NOTHING, _NOTHING, 0.0, _NOTHING)
        adopt_caller(Caller("router", "1", "spiffe://mesh.test/router/1", bytes(32), b"", lease))
        await self._servicer.OpenVault(pb.OpenVaultRequest(tenant_id=TENANT), _NOTHING)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


async def test_a_writer_whom_another_may_have_followed_opens_no_vault(writer: Writer) -> None:
    writer.is_heard = False
    with pytest.raises(LogBehind):
        await asyncio.create_task(writer.open())
    assert (writer.vaults.all(), writer.keys.asked) == ((), [])


async def test_a_writer_who_is_followed_while_it_waits_for_the_kms_gives_no_key(writer: Writer) -> None:
    def follow(name: str) -> None:
        writer.is_heard = False

    writer.keys.fail = follow
    with pytest.raises(LogBehind):
        await asyncio.create_task(writer.open())
    assert len(writer.keys.asked) == 1
