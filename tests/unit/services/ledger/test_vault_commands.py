"""`teemesh ledger vault|erase|hold|release|submit` against a real ledger, as operators use them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.policy.orders import PRUNE_LOG, RETIRE_KEY
from libs.policy.vault_orders import month_of
from services.router.proof.vaults import Vaults
from tests.fakes.joined_mesh import JoinedMesh

from .desk import Desk
from .live import LiveMesh

TENANT = "ab" * 16


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


async def test_operators_hold_release_and_erase_a_vault_and_are_told_which_entries_say_so(
    live: LiveMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await live.start()
    desk = Desk(live, tmp_path, capsys)
    assert await desk.ledger("vault", TENANT) == (
        1,
        "teemesh: VAULT_UNKNOWN: the tenant has no vault in this log\n",
    )
    async with live.router() as router:
        vault = await Vaults(router.member, router.ledger, router.receiver).key(TENANT)
        subject = vault.vault_id.hex()
        code, said = await desk.ledger("vault", TENANT)
        assert (code, said) == (0, f"vault   {subject}\nstate   open\nmonths  {month_of(vault.epoch)}\n")

        hold = await desk.order("hold", "hold", TENANT)
        assert (await desk.ledger("submit", str(hold)))[1].startswith(f"{subject}: held, says entry ")
        assert "state   held" in (await desk.ledger("vault", TENANT))[1]
        erase = await desk.order("erase", "erase", TENANT)
        assert "VAULT_HELD" in (await desk.ledger("submit", str(erase)))[1]
        release = await desk.order("release", "release", TENANT)
        assert "released" in (await desk.ledger("submit", str(release)))[1]
        month = await desk.order("month", "erase", TENANT, "--epoch", month_of(vault.epoch))
        assert "EPOCH_NOT_OVER" in (await desk.ledger("submit", str(month)))[1]
        prune = await desk.order("prune", "order-prune", "--before", "4")
        assert "ENTRIES_NOT_SEALED" in (await desk.ledger("submit", str(prune)))[1]
        prune = await desk.order("unsigned", "order-prune", "--before", "4", signers=1)
        assert "ORDER_SIGNATURES_INSUFFICIENT" in (await desk.ledger("submit", str(prune)))[1]
        alone = await desk.order("alone", "erase", TENANT, signers=1)
        assert "ORDER_SIGNATURES_INSUFFICIENT" in (await desk.ledger("submit", str(alone)))[1]

        code, said = await desk.ledger("submit", str(erase))
        lines = said.splitlines()
        assert (code, lines[0]) == (0, f"{subject}: erased, its shares, its tag share and its tenant's name are gone")
        assert lines[2] == "the KMS's half is refused for ever"
        stub = ledger_pb2_grpc.LedgerServiceStub(await router.ledger.channel(10))
        for index in (int(word.rstrip(",;")) for word in lines[1].split() if word.rstrip(",;").isdigit()):
            if index:
                entry = await stub.GetEntry(ledger_pb2.GetEntryRequest(index=index), timeout=5)
                assert subject.encode() in entry.entry.body
        assert "VAULT_UNKNOWN" in (await desk.ledger("vault", TENANT))[1]


async def test_what_is_no_order_about_a_vault_is_not_submitted(
    live: LiveMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(live, tmp_path, capsys)
    retire = tmp_path / "retire.json"
    retire.write_bytes(live.order(RETIRE_KEY, "0a" * 16))
    assert "INPUT_UNREADABLE" in (await desk.ledger("submit", str(retire)))[1]
    retire.write_bytes(live.order(RETIRE_KEY, "models/a"))
    assert "VAULT_SUBJECT_MALFORMED" in (await desk.ledger("submit", str(retire)))[1]
    erase = tmp_path / "erase.json"
    erase.write_bytes(live.order("erase-vault", "0a" * 16))
    code, said = await desk.run("kms", "submit", str(erase), "--state", str(tmp_path))
    assert (code, "teemesh ledger submit" in said) == (1, True)
    erase.write_bytes(live.order(PRUNE_LOG, "mesh.local/ledger/1,4"))
    code, said = await desk.run("kms", "submit", str(erase), "--state", str(tmp_path))
    assert (code, "teemesh ledger submit" in said) == (1, True)
    for wrong in (["--epoch", "2026-13", "--reason", "x"], ["--reason", "x" * 257]):
        code, said = await desk.ledger("erase", TENANT, *wrong, "--out", str(tmp_path / "wrong.json"))
        assert code == 1
        assert not (tmp_path / "wrong.json").exists()
