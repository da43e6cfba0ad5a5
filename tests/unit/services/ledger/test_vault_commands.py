"""`teemesh ledger vault|erase|hold|release|submit` against a real ledger, as operators use them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.identity.certificate import Subject, key_pem, pem_of
from libs.policy.orders import PRUNE_LOG, RETIRE_KEY
from libs.policy.vault_orders import month_of
from services.cli.__main__ import main
from services.router.proof.vaults import Vaults
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh

from .live import LiveMesh

TENANT = "ab" * 16
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d ")


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


class Desk:
    """Two operators, their keys in files, and what the mesh's folder says."""

    def __init__(self, live: LiveMesh, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.live, self.folder, self._capsys = live, folder, capsys
        key = ec.generate_private_key(ec.SECP256R1())
        subject = Subject(TRUST_DOMAIN, "operator", "ada", None)
        certificate = pem_of(live.kms.ca.issue_svid(subject, key.public_key(), time.time()))
        files = {"ca.pem": live.member.ca_pem, "operator.pem": certificate, "operator.key": key_pem(key)}
        for name, data in files.items():
            (folder / name).write_bytes(data)
        described = {
            "kms_grpc": live.kms_target,
            "ledger_grpc": live.target,
            "trust_domain": TRUST_DOMAIN,
            "mesh_ca": "ca.pem",
            "operator_cert": "operator.pem",
            "operator_key": "operator.key",
        }
        (folder / "mesh.json").write_text(json.dumps(described))

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run one command; return its status and what it said."""
        code = await asyncio.to_thread(main, arguments)
        said = self._capsys.readouterr()
        lines = (said.out + said.err).splitlines(keepends=True)
        # The mesh around it logs from this very process.
        return code, "".join(line for line in lines if not _LOGGED.match(line))

    async def ledger(self, *arguments: str) -> tuple[int, str]:
        return await self.run("ledger", *arguments, "--state", str(self.folder))

    async def order(self, name: str, *arguments: str, signers: int = 2) -> Path:
        """Have an order drafted and signed."""
        out = self.folder / f"{name}.json"
        code, said = await self.ledger(*arguments, "--reason", "request 7", "--out", str(out))
        assert (code, "teemesh kms approve" in said) == (0, True)
        for number, key in enumerate(self.live.mesh.operators[:signers]):
            path = self.folder / f"{number}.pem"
            path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            path.chmod(0o600)
            code, said = await self.run("kms", "approve", str(out), "--key", str(path))
            assert (code, "reason        request 7" in said) == (0, True)
        return out


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
