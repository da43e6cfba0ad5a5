"""What was promised, held against the log: it remembers every entry's bytes itself and believes nobody.

I1: what was acknowledged is there once, and opens to the same bytes. I2: the second reading of the format finds nothing
wrong. I3: every tree that was signed is a beginning of this one. I5: no index has another leaf than it had. I6: what
the log has stepped over, and was at fault, is owed or stored (`saying`).
(I4, nothing before it is durable, is `order`'s.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from libs.audit.log.reading import Question, read_log
from libs.events.records import Record, RecordHeader, open_record
from libs.events.vault import PUBLIC_VAULT_ID
from libs.transparency import checkpoint
from libs.transparency.chain import entry_id
from libs.transparency.merkle import leaf_hash, root_of
from services.cli.ledger.files import LogFolder
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.reading import StoredEntry
from tests.fakes.written_log import VAULT
from tests.faults.ledger.life import GEOMETRY, keyring_of, open_log
from tests.faults.ledger.plan import Plan
from tests.faults.ledger.saying import unsaid
from tests.faults.ledger.told import Lived


class Recorder:
    """Of one log's lives, one after the other."""

    def __init__(self, plan: Plan, lives: Iterable[Lived] = ()) -> None:
        self._plan = plan
        self._entries = {each.entry_id: each for each in plan.entries}
        self._leaves: dict[int, bytes] = {}
        self._acknowledged: set[tuple[int, bytes]] = set()
        self._notes: list[bytes] = []
        self._generation = 0
        self.wrong: list[str] = []
        for lived in lives:
            self.take(lived)

    def take(self, lived: Lived) -> None:
        """Note what a life promised."""
        for each in lived.acknowledged():
            if self._leaves.setdefault(each.index, each.leaf_hash) != each.leaf_hash:
                self.wrong.append(f"I5: leaf {each.index} is acknowledged as another than before")
            self._acknowledged.add((each.index, each.entry_id))
        self._notes += lived.notes()
        self._generation = max(self._generation, lived.generation())

    def examine(self, folder: Path, *, whole: bool, second: bool = True) -> int:
        """Open the log and hold it against everything promised; `whole` where all entries must be there, `second`
        where it must be sound for the second reading too.

        Returns its size. Raises what a start raises.
        """
        with open_log(folder, self._plan) as store:
            stored = list(store.reader.entries(0, store.head.size))
            generation = keyring_of(folder, store.log_id).generation
            high = store.head.source_high
        self.wrong += unsaid(folder, self._plan, high)
        self._hold_entries(stored, whole=whole)
        self._hold_trees([each.row.leaf_data for each in stored])
        if generation < self._generation:
            self.wrong.append(f"the keyring is of generation {generation}, and {self._generation} was kept")
        if second:
            self.wrong += second_reading(folder)
        return len(stored)

    def _hold_entries(self, stored: Sequence[StoredEntry], *, whole: bool) -> None:
        ids = [entry_id(each.leaf.issuer, each.leaf.issuer_seq) for each in stored]
        twice = [entry.hex()[:12] for entry, count in Counter(ids).items() if count > 1]
        self.wrong += [f"I1: entry {entry} is there twice" for entry in twice]
        for index, entry in self._acknowledged:
            if index >= len(ids) or ids[index] != entry:
                self.wrong.append(f"I1: entry {entry.hex()[:12]} was acknowledged at {index} and is not there")
        for index, (entry, each) in enumerate(zip(ids, stored, strict=True)):
            if not _is_as_written(self._entries.get(entry), each):
                self.wrong.append(f"I1: entry {index} is not what was written")
            hashed = leaf_hash(each.row.leaf_data)
            if self._leaves.setdefault(index, hashed) != hashed:
                self.wrong.append(f"I5: index {index} has another leaf than it had")
        if whole and set(ids) != set(self._entries):
            self.wrong.append(f"{len(self._entries) - len(set(ids))} entries never came into the log")

    def _hold_trees(self, leaves: Sequence[bytes]) -> None:
        hashes = [leaf_hash(data) for data in leaves]
        for note in self._notes:
            tree = checkpoint.parse(note)
            if tree.size > len(hashes) or root_of(hashes[: tree.size]) != tree.root:
                self.wrong.append(f"I3: the signed tree of {tree.size} leaves is not a beginning of this log")


def second_reading(folder: Path) -> list[str]:
    """What `teemesh ledger verify --full` would find wrong."""
    findings = read_log(LogFolder(folder), Question(block_leaves=GEOMETRY.block_leaves)).findings
    return [f"I2: {each.status.name}: {each.file} at byte {each.offset}: {each.what}" for each in findings.wrong]


def _is_as_written(candidate: Candidate | None, each: StoredEntry) -> bool:
    """Whether it is the very record that was handed in, and opens."""
    row = each.row
    if candidate is None or (row.body, row.vault_id, row.vault_epoch) != (
        candidate.body,
        candidate.vault_id,
        candidate.vault_epoch,
    ):
        return False
    vault = None if row.vault_id == PUBLIC_VAULT_ID else VAULT
    header = RecordHeader(len(row.body), each.leaf.kind, row.vault_epoch, row.vault_id, each.leaf.commitment)
    open_record(Record(header, row.body), each.leaf.issuer, each.leaf.issuer_seq, vault)
    return True
