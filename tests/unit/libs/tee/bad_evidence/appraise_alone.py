"""Asks for appraisals in a process of its own, of what the attestation service wires when it was started with a config.

`python -m tests.unit.libs.tee.bad_evidence.appraise_alone PUBLISHED DEVELOPMENT CONFIG...` boots a software TEE, writes
its vendor root to DEVELOPMENT, and prints a line for each config: what becomes of evidence of the software TEE under a
policy whose only vendor root is PUBLISHED. That is the reason of the refusal, `accepted`, or why a service with this
config does not start. The line before them is of the first config under a policy that names the development root.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from libs import config
from libs.errors import MeshError
from libs.tee.ear import Signer
from services.attestation.__main__ import build
from services.attestation.appraisal import PURPOSE
from services.attestation.config import Config
from services.devtee.machine import Machine
from tests.fakes.certified_router import CertifiedRouter
from tests.fakes.joined_mesh import JoinedMesh


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh of software TEEs, and the identity that its attestation service signs with."""

    joined: JoinedMesh
    signer: Signer

    @classmethod
    def create(cls, folder: Path) -> Mesh:
        joined = JoinedMesh(folder, Machine.create(int(time.time())))
        some = CertifiedRouter(joined, joined.kms(), time.time)
        until = some.certificate.not_after
        return cls(joined, Signer(some.certificate.spiffe_id, some.key, some.certificate.der, until))

    def trust(self, name: str, root: bytes, *, development: bool) -> None:
        """Begin with a policy that names this vendor root alone."""
        vendor_root = {"name": name, "tee_type": "tdx", "certificate": root.hex(), "development": development}
        self.joined.draft = {**self.joined.draft, "vendor_roots": [vendor_root]}
        self.joined.seed = self.joined.sign(self.joined.draft)

    async def outcome(self, path: Path) -> str:
        keeper = self.joined.keeper("attestation")
        try:
            settings = config.load(path, Config)
            judging = await build(settings, self.signer.spiffe_id, keeper, lambda: self.signer)
        except (MeshError, OSError) as error:
            return f"does not start: {type(error).__name__}"
        challenge = judging.challenges.issue(PURPOSE)
        evidence = self.joined.evidence("router", challenge, ec.generate_private_key(ec.SECP256R1()))
        try:
            await judging.appraiser.appraise(evidence.document, "router")
        except MeshError as refusal:
            return refusal.reason
        return "accepted"


async def _outcomes(mesh: Mesh, published: bytes, configs: Sequence[Path]) -> list[str]:
    mesh.trust("development", mesh.joined.machine.vendor_root, development=True)
    outcomes = [await mesh.outcome(configs[0])]
    mesh.trust("published", published, development=False)
    return [*outcomes, *[await mesh.outcome(path) for path in configs]]


def main() -> None:
    published, development, *configs = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        mesh = Mesh.create(Path(folder))
        development.write_bytes(mesh.joined.machine.vendor_root)
        # What the service logs goes elsewhere.
        with redirect_stdout(sys.stderr):
            outcomes = asyncio.run(_outcomes(mesh, published.read_bytes(), configs))
    sys.stdout.writelines(f"{outcome}\n" for outcome in outcomes)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
