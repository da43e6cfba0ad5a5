"""Operators at their desk: `teemesh` run against a real ledger."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from libs.identity.certificate import Subject, key_pem, pem_of
from services.cli.__main__ import main
from tests.fakes.joined_mesh import TRUST_DOMAIN

from .live import LiveMesh

_LOGGED = re.compile(r"\d{4}-\d\d-\d\d ")


class Desk:
    """Two operators, their keys in files, and what the mesh's folder says."""

    def __init__(
        self, live: LiveMesh, folder: Path, capsys: pytest.CaptureFixture[str], *, role: str = "operator"
    ) -> None:
        """`role` is that of the certificate with which the mesh is called."""
        self.live, self.folder, self._capsys = live, folder, capsys
        key = ec.generate_private_key(ec.SECP256R1())
        subject = Subject(TRUST_DOMAIN, role, "ada", None)
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
