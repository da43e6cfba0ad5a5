"""One life of a small log in a process of its own: start, commits, a refusal, shares, signed trees, and the end.

It is the ledger's own code from the sequencer down and its auditor, without the stream and the network around them:
thousands of lives are lived in minutes. What it was told of, an acknowledgement or a signed tree, it tells at once.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency import checkpoint, cose_receipt, cosignature
from libs.transparency.acknowledgement import Statement
from libs.transparency.chain import entry_id
from services.ledger.auditor import Auditor
from services.ledger.intake.rejections import Reason, Refusal, Rejections
from services.ledger.intake.sequencer import Candidate, Outcome, Sequencer
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.keyring import Keyring, KeyringFile, VaultShares
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore
from tests.fakes.written_log import ORIGIN, SOURCE, VAULT, tag_of
from tests.faults.ledger.disk import Disk, Met, SyncedAgain, Trouble
from tests.faults.ledger.recording import Change, Recording

GEOMETRY = Geometry(block_leaves=4, segment_leaves=4, segment_bytes=1 << 30, zeros_ahead=600, sealed_at_stop=3)
"""Small, so that a life of a few entries cuts segments."""
ONE_SEGMENT = Geometry(block_leaves=4, segment_leaves=1 << 18, segment_bytes=1 << 30, zeros_ahead=600)
INDEX_KEY = b"\x08" * 32
KEYRING_KEY = b"\x44" * 32
_WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(b"\x0c" * 32)
WITNESS = cosignature.CosignerKey(
    "witness.example", cosignature.Algorithm.ED25519, _WITNESS_KEY.public_key().public_bytes_raw()
)
_BEGAN = 1_800_000_000 * 10**9
_LIFE_SECONDS = 60.0
_PROCESSES = multiprocessing.get_context("fork")
"""Cheap; so whoever lives MUST have no threads, see `apart`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a life is to write, the same however often it is begun."""

    ack_key: bytes
    checkpoint_key: bytes
    frames: tuple[tuple[Candidate, ...], ...]
    generations: int
    """How often the keyring is rewritten in a life."""
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An entry IS durable, says the ledger."""

    index: int
    entry_id: bytes
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """A tree was signed and released."""

    note: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """A generation of the keyring IS durable."""

    generation: int


@dataclass(frozen=True, slots=True)
class Ended:
    """It came to its end, after so many steps."""

    steps: int
    writes: tuple[int, ...]
    """Which of them wrote bytes."""


Told = Acknowledged | Signed | Kept | Ended | Met | SyncedAgain | Change
Tell = Callable[[Told], None]


@dataclass(frozen=True, slots=True)
class Lived:
    """What came of a life."""

    status: int
    """Exit status; negative for a signal."""
    told: tuple[Told, ...]

    @property
    def steps(self) -> int:
        """How many it took; 0 where it did not come to its end."""
        return next((each.steps for each in self.told if isinstance(each, Ended)), 0)

    @property
    def writes(self) -> Sequence[int]:
        return next((each.writes for each in self.told if isinstance(each, Ended)), ())

    def acknowledged(self) -> list[Acknowledged]:
        return [each for each in self.told if isinstance(each, Acknowledged)]

    def notes(self) -> list[bytes]:
        return [each.note for each in self.told if isinstance(each, Signed)]

    def generation(self) -> int:
        return max((each.generation for each in self.told if isinstance(each, Kept)), default=0)


def open_log(folder: Path, plan: Plan) -> LogStore:
    """Open a log as a life does. Raises what the ledger's start raises."""
    key = Ed25519PrivateKey.from_private_bytes(plan.ack_key)
    return LogStore(folder, sign=key.sign, clock=lambda: _BEGAN, index_key=INDEX_KEY, geometry=plan.geometry)


def said_of(folder: Path) -> Path:
    """Where the lives of a log leave what they say."""
    return folder.with_name(f"{folder.name}.said")


def auditor_of(folder: Path, plan: Plan) -> Auditor:
    """The auditor of a life, which has read nothing yet."""
    key = Ed25519PrivateKey.from_private_bytes(plan.checkpoint_key)
    return Auditor(
        folder,
        ORIGIN,
        lambda tree: checkpoint.sign(tree, key),
        lambda tree: cose_receipt.sign(tree, key),
        plan.geometry,
    )


def keyring_of(folder: Path, log_id: bytes) -> Keyring:
    """Open the keyring. Raises `LogDamaged`."""
    return KeyringFile(folder, log_id).load(KEYRING_KEY)


def live(folder: Path, plan: Plan, tell: Tell) -> None:
    """Write what of the plan is not written yet, and sign. Raises what the ledger's start and writing raise."""
    with open_log(folder, plan) as store, closing(Rejections(folder)) as rejections:
        sequencer = Sequencer(store, epoch=store.last_epoch + 1, tag=tag_of, clock=lambda: _BEGAN)
        auditor = auditor_of(folder, plan)
        shares, keyring = KeyringFile(folder, store.log_id), keyring_of(folder, store.log_id)
        for number, frame in enumerate(plan.frames):
            _commit(store, sequencer, frame, tell)
            if number < plan.generations:
                keyring = Keyring(keyring.generation + 1, (_vault(keyring.generation + 1),))
                shares.store(keyring, KEYRING_KEY, 1)
                tell(Kept(keyring.generation))
            refused = frame[0]
            rejections.keep(
                [Refusal(number, Reason.CONFLICT, "", refused.body, refused.issuer, 10_000 + refused.issuer_seq)]
            )
            if number % 2:
                _sign(store, auditor, tell)
        _sign(store, auditor, tell)


def run(folder: Path, plan: Plan, trouble: Trouble | None = Trouble()) -> Lived:  # noqa: B008 - it is frozen
    """Live in a process of its own, with trouble; return when that has ended. Without any, every change is told."""
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    child = _PROCESSES.Process(target=_live_apart, args=(folder, plan, trouble, theirs))
    child.start()
    theirs.close()
    told: list[Told] = []
    with ours:
        while ours.poll(_LIFE_SECONDS):
            try:
                told.append(ours.recv())
            except EOFError:
                break
        else:
            child.kill()
            raise TimeoutError(f"a life with {trouble} does not end")
    child.join()
    assert child.exitcode is not None
    return Lived(child.exitcode, tuple(told))


def _live_apart(folder: Path, plan: Plan, trouble: Trouble | None, telling: Connection) -> None:
    with said_of(folder).open("ab") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())
        os.dup2(said.fileno(), sys.stdout.fileno())
    disk = Recording(folder, telling.send) if trouble is None else Disk(trouble, telling.send)
    disk.install()
    try:
        with ending_when_broken():
            live(folder, plan, telling.send)
    except OSError:
        # As a service's own entry point does with what nobody expected.
        sys.stderr.write(traceback.format_exc(limit=-1))
        sys.exit(1)
    telling.send(Ended(disk.steps, tuple(disk.writes)))


def _commit(store: LogStore, sequencer: Sequencer, frame: Sequence[Candidate], tell: Tell) -> None:
    """Commit what is new of a message, and acknowledge all of it."""
    verdicts = sequencer.judge(frame)
    new = [verdict.candidate for verdict in verdicts if verdict.outcome is Outcome.NEW]
    if new:
        position = store.head.source_high + 1
        for commit in sequencer.append(new, SOURCE, position, position):
            for signed, _ in commit.entries:
                statement = Statement.parse(signed)
                tell(
                    Acknowledged(statement.index, entry_id(statement.issuer, statement.issuer_seq), statement.leaf_hash)
                )
    for verdict in verdicts:
        if verdict.outcome is not Outcome.NEW:
            signed, _ = store.reader.statement(verdict.index)
            leaf_hash = Statement.parse(signed).leaf_hash
            tell(Acknowledged(verdict.index, verdict.candidate.entry_id, leaf_hash))


def _sign(store: LogStore, auditor: Auditor, tell: Tell) -> None:
    store.sync_watermark()
    note = auditor.checkpoint(store.head.size, store.head.root())
    tell(Signed(note))
    cosigned = cosignature.cosign(checkpoint.parse(note), WITNESS.name, _WITNESS_KEY, 7)
    auditor.witnessed(cosignature.attach(note, [cosigned]))


def _vault(generation: int) -> VaultShares:
    return VaultShares(VAULT.vault_id, VAULT.tenant, b"\x22" * 32, {VAULT.epoch: generation.to_bytes(32, "big")})
