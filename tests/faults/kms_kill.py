"""Kill a KMS at any point of its start, of rotation, issuance and a join: nothing may be lost or begun twice.

`python -m tests.faults.kms_kill --kills 200 --seed 7` makes a KMS, a second one that joins it, a ledger and a broker of
its own, prints what happened, and exits 0 only if everything held. Half of the deaths are at one of the process's own
writes, before it or in its middle; the others come when they come.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from libs.rpc.hardening import ssl_hardening

ssl_hardening()

import structlog  # noqa: E402 - gRPC comes after the hardening
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

from libs.files import draft_of  # noqa: E402
from libs.identity.certificate import make_csr  # noqa: E402
from libs.policy.orders import JOIN_KMS, Order, SignedOrder, join_subject  # noqa: E402
from services.devtee.machine import Machine  # noqa: E402
from services.kms.book import KeyBook  # noqa: E402
from services.kms.issuance import ISSUANCE  # noqa: E402
from services.kms.pages import Pages  # noqa: E402
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore  # noqa: E402
from tests.faults.kms_clients import Promised, using  # noqa: E402
from tests.faults.kms_log import contradictions, missing, read_log  # noqa: E402
from tests.faults.kms_processes import Dying, KmsMesh, Service  # noqa: E402
from tests.faults.patience import until  # noqa: E402
from tests.mesh.running import short_folder  # noqa: E402

_BIRTHS = 8
_START_STEPS = 30
_SERVING_STEPS = 60
_JOIN_STEPS = 6
_LONGEST_LIFE_SECONDS = 4.0
_PATIENCE_SECONDS = 30.0
_KINDS = ("start", "serving", "anywhen", "newcomer", "giver")


@dataclass(slots=True)
class Outcome:
    """What a run of kills did."""

    kills: Counter[str] = field(default_factory=Counter)
    at_writes: int = 0
    """How many of them were the process's own, at a write."""
    joined: int = 0
    half_joined: int = 0
    """Newcomers that died with the root, and those that died without it."""
    not_joined: int = 0
    drafts: int = 0
    """Half-written files that a death left and the next start removed."""
    promised: Promised = field(default_factory=Promised)
    wrong: list[str] = field(default_factory=list)
    entries: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        return self.kills.total()

    @property
    def holds(self) -> bool:
        promised = self.promised
        used = promised.released and promised.certified and all(epoch > 1 for epoch in promised.epochs.values())
        return bool(used) and not self.wrong and not promised.wrong

    def report(self) -> str:
        promised = self.promised
        lines = [
            f"kills         {self.killed} in {self.seconds:.0f} s: "
            + ", ".join(f"{count} {kind}" for kind, count in self.kills.most_common()),
            f"              {self.at_writes} of them at a write of the process's own",
            "rotations     " + ", ".join(f"{name} up to {epoch}" for name, epoch in promised.epochs.items()),
            f"releases      {promised.released.total()} of {len(promised.released)} epochs",
            f"certificates  {len(promised.certified)}",
            f"newcomers     {self.joined} joined; killed with the root {self.half_joined}, without {self.not_joined}",
            f"drafts        {self.drafts} left by the dead, all removed by the next life",
            "told meantime " + (", ".join(f"{n} x {kind}" for kind, n in promised.refused.most_common()) or "nothing"),
            "log           " + ", ".join(f"{count} {kind}" for kind, count in sorted(self.entries.items())),
        ]
        return "\n".join([*lines, *self.wrong, *promised.wrong])


class Killing:
    """One run over one KMS."""

    def __init__(self, kms: KmsMesh, chance: random.Random, outcome: Outcome) -> None:
        self._kms = kms
        self._chance = chance
        self._outcome = outcome
        self._root: bytes | None = None
        self._core: KmsCore

    async def run(self, kills: int) -> None:
        await self._be_born()
        self._core = self._kms.mesh.kms("core", root=self._root)
        self._kms.order.write_bytes(self._signed_order())
        async with self._kms.logging(self._core, time.time()):
            async with using(self._kms, self._core, self._outcome.promised):
                kinds = list(_KINDS)
                while self._outcome.killed < kills and not self._outcome.wrong:
                    self._chance.shuffle(kinds)
                    for kind in kinds:
                        await self._live(kind)
                await self._die(self._kms.kms, "as it served", 0)
                await self._serve()
                await self._settle_rotation()
            await self._prove()

    async def _be_born(self) -> None:
        """Die while there is no root yet, or hardly. Whatever was sealed once is what stays."""
        for _ in range(_BIRTHS):
            await self._kms.kms.start(Dying.draw(self._chance, _BIRTHS, serving=False))
            await self._die(self._kms.kms, "birth", _LONGEST_LIFE_SECONDS)
            self._root = await self._sealed_root(self._kms.kms) or self._root
        await self._serve()
        self._root = await self._sealed_root(self._kms.kms)

    async def _live(self, kind: str) -> None:
        """One life of the first instance, from its start to its death, and of the second where it takes part."""
        kms, chance = self._kms.kms, self._chance
        await self._die(kms, "as it served", 0)
        match kind:
            case "start":
                await kms.start(Dying.draw(chance, _START_STEPS, serving=False))
                await self._die(kms, "start", _LONGEST_LIFE_SECONDS)
            case "serving":
                await self._serve(Dying.draw(chance, _SERVING_STEPS, serving=True))
                await self._settle_rotation()
                kms.tell()
                await self._die(kms, "at work", _LONGEST_LIFE_SECONDS)
            case "anywhen":
                await kms.start()
                await self._die(kms, "anywhen", chance.uniform(0, _LONGEST_LIFE_SECONDS))
            case _:
                await self._join(newcomer_dies=kind == "newcomer")

    async def _join(self, *, newcomer_dies: bool) -> None:
        """A newcomer joins. One side dies meanwhile; the other goes on, or it itself does in its next life."""
        kms, newcomer, chance = self._kms.kms, self._kms.newcomer, self._chance
        _forget(newcomer.state)
        await self._serve(None if newcomer_dies else Dying.draw(chance, _SERVING_STEPS, serving=True))
        await self._settle_rotation()
        if newcomer_dies:
            at_a_write = chance.random() < 0.5
            await newcomer.start(Dying.draw(chance, _JOIN_STEPS, serving=False) if at_a_write else None)
            await self._die(newcomer, "newcomer", chance.uniform(0, _LONGEST_LIFE_SECONDS) + at_a_write)
            has_root = await self._sealed_root(newcomer) is not None
            self._outcome.half_joined += has_root
            self._outcome.not_joined += not has_root
            await newcomer.start()
        else:
            await newcomer.start()
            await self._die(kms, "giver", chance.uniform(0, _LONGEST_LIFE_SECONDS), told=True)
            await self._serve()
        if not await newcomer.ready():
            self._outcome.wrong.append(f"the newcomer did not join: {_last_words(newcomer)}")
        elif await self._sealed_root(newcomer) is not None:
            self._outcome.joined += 1
        await self._die(newcomer, "newcomer served", 0)

    async def _serve(self, dying: Dying | None = None) -> None:
        left = self._drafts()
        await self._kms.kms.start(dying)
        if not await self._kms.kms.ready():
            self._outcome.wrong.append(f"the KMS does not start: {_last_words(self._kms.kms)}")
        elif stayed := left & self._drafts():
            self._outcome.wrong.append(f"drafts stay after a start: {stayed}")
        else:
            self._outcome.drafts += len(left)

    def _drafts(self) -> set[Path]:
        """What lives that ended left half-written of the KMS's own files."""
        return {path for path in self._kms.kms.state.rglob(".*") if draft_of(path.name) is not None}

    async def _settle_rotation(self) -> None:
        """Wait until this life has acknowledged a rotation: from then on everything is under way."""
        rotated = self._outcome.promised.rotated
        rotated.clear()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await rotated.wait()
        except TimeoutError:
            self._outcome.wrong.append(f"nothing is rotated any more: {_last_words(self._kms.kms)}")

    async def _die(self, service: Service, kind: str, within: float, *, told: bool = False) -> None:
        """Wait for a death at a write; kill what lives longer. Then look at what lies on the disk.

        One that has died before dies no second time.
        """
        if not service.is_running:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                if told:
                    await asyncio.sleep(self._chance.uniform(0, within))
                    service.tell()
                await service.ended()
                self._outcome.at_writes += 1
        status = await service.kill()
        if status != -signal.SIGKILL:
            self._outcome.wrong.append(f"{kind}: ended with status {status}: {_last_words(service)}")
        self._outcome.kills[kind] += 1
        await self._sealed_root(service)
        if service is self._kms.kms:
            self._open_book()

    async def _sealed_root(self, service: Service) -> bytes | None:
        """The root that lies on the disk, which must open, and be the one that was there before."""
        root = await self._kms.root_of(service)
        if self._root is not None and root not in (self._root, None if service is self._kms.newcomer else self._root):
            self._outcome.wrong.append(f"{service.state} holds another root, or none")
        return root

    def _open_book(self) -> Pages:
        if self._root is None:
            return Pages()
        keyring = self._kms.mesh.kms("core", root=self._root).keyring
        pages = KeyBook(self._kms.kms.state, keyring.state_key).pages
        begun = self._kms.kms.epochs_begun()
        for name, acknowledged in self._outcome.promised.epochs.items():
            newest = pages.keys[name].epoch if name in pages.keys else 1
            if newest < max(acknowledged, begun.get(name, 1)):
                self._outcome.wrong.append(
                    f"{name}: epoch {begun.get(name)} had begun, {acknowledged} was acknowledged, the book has {newest}"
                )
        return pages

    async def _prove(self) -> None:
        """Let both instances say what they still have to say; then hold the log against all that was promised."""
        await self._kms.newcomer.start()
        await self._kms.newcomer.ready()
        outcome = self._outcome
        lacking: list[str] = []

        async def is_settled() -> bool:
            nonlocal lacking
            log = await read_log(self._core, self._kms.address("ledger"))
            outcome.entries = Counter(logged.leaf.kind.name.lower() for logged in log.entries)
            lacking = missing(log, outcome.promised, self._open_book(), outcome.joined)
            if not lacking:
                outcome.wrong += contradictions(log, outcome.promised, self._open_book())
            return not lacking

        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await until(is_settled, poll_seconds=1)
        except TimeoutError:
            outcome.wrong += lacking

    def _signed_order(self) -> bytes:
        """The operators' order to give the second instance the root."""
        core, mesh = self._core, self._kms.mesh
        key = ec.generate_private_key(ec.SECP256R1())
        evidence = mesh.evidence("kms", core.challenges.issue(ISSUANCE), key)
        _, appraisal = core.issuance.certify_service(make_csr(key), evidence.document, "2")
        subject = join_subject(
            f"spiffe://{TRUST_DOMAIN}/kms/2", appraisal.measurement.compose_hash, appraisal.device_id
        )
        signed = SignedOrder(Order(TRUST_DOMAIN, JOIN_KMS, subject, 2**33))
        for operator in mesh.operators[:2]:
            signed = signed.signed_by(operator)
        return signed.document


def _forget(state: Path) -> None:
    """Make it a newcomer again. What it has not told the log yet, it still has to."""
    for path in state.iterdir() if state.exists() else ():
        if path.name != "outbox":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _last_words(service: Service) -> str:
    return service.log.read_text()[-2000:] if service.log.exists() else "nothing"


async def kill_kms(folder: Path, *, kills: int, seed: int) -> Outcome:
    """Kill until so many have died; then prove."""
    outcome, began = Outcome(), time.monotonic()
    mesh = JoinedMesh(folder, Machine.create(int(time.time())))
    async with KmsMesh(mesh).prepared() as kms:
        chance = random.Random(seed)  # noqa: S311 - an order of deaths, not a secret
        await Killing(kms, chance, outcome).run(kills)
    outcome.seconds = time.monotonic() - began
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kms_kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many processes die (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of when and where (default: %(default)s)")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with short_folder() as folder:
        outcome = asyncio.run(kill_kms(folder, kills=arguments.kills, seed=arguments.seed))
    sys.stdout.write(outcome.report() + "\n")
    return 0 if outcome.holds and outcome.killed >= arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
