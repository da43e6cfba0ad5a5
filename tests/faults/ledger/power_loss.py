"""5: what a power cut may leave of a life: any part of what was not synced yet, in any order, or something else."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from libs.errors import MeshError
from tests.faults.ledger.life import run
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger.recorder import Recorder
from tests.faults.ledger.recording import Begun, FolderSynced, Made, Removed, Renamed, Synced, Wrote
from tests.faults.ledger.small_log import SmallLog, remove
from tests.faults.ledger.told import Acknowledged, Kept, Lived, Signed, Told

_SECTORS = (512, 4096)
_GARBAGE_SHARE = 0.1
_BEFORE_SYNC_SHARE = 0.7
"""Of all moments: then the most is open."""


@dataclass(slots=True)
class _File:
    """What a file's content may be: the last of these that was synced, and all that came after."""

    versions: list[bytes] = field(default_factory=lambda: [b""])

    def write(self, change: Wrote) -> None:
        newest = self.versions[-1]
        self.versions.append((newest[: change.offset] + change.data)[: change.size])

    def after_cut(self, chance: random.Random) -> bytes:
        """Each sector on its own is of any version, or was half written; so is the length."""
        if len(self.versions) == 1:
            return self.versions[0]
        length = len(chance.choice(self.versions))
        size = chance.choice(_SECTORS)
        keep = chance.choice(("any", "garbage", "newest but one"))
        return b"".join(self._sector(at, min(size, length - at), keep, chance) for at in range(0, length, size))

    def _sector(self, at: int, size: int, keep: str, chance: random.Random) -> bytes:
        # To cut a file short changes its length alone: nothing is written to the sectors behind its new end.
        last = max(number for number, version in enumerate(self.versions) if len(version) > at)
        written = [version[at : at + size].ljust(size, b"\0") for version in self.versions[: last + 1]]
        found, newest = set(written), written[-1]
        if len(found) == 1 or (keep == "newest but one" and chance.random() > _GARBAGE_SHARE):
            return newest
        if keep == "garbage" and chance.random() < _GARBAGE_SHARE:
            return _garbled(sorted(found), chance)
        return chance.choice(sorted(found))


@dataclass(slots=True)
class Disk:
    """What is durable, and what may be."""

    files: dict[int, _File] = field(default_factory=lambda: defaultdict(_File))
    names: dict[str, int] = field(default_factory=dict)
    pending: list[Made | Renamed | Removed] = field(default_factory=list)
    """Changes of names, in folders that were not synced since."""

    def take(self, change: Told) -> None:
        match change:
            case Made() | Renamed() | Removed():
                self.pending.append(change)
            case Wrote(file):
                self.files[file].write(change)
            case Synced(file):
                del self.files[file].versions[:-1]
            case FolderSynced(name):
                done = [each for each in self.pending if _folder_of(each) == name]
                self.pending = [each for each in self.pending if _folder_of(each) != name]
                for each in done:
                    _apply(self.names, each, self._made())
            case _:
                pass

    def after_cut(self, chance: random.Random) -> dict[str, bytes]:
        """Return the files as they may be found: each change of a name came about or not, on its own."""
        names = dict(self.names)
        share = chance.choice((0.0, 0.5, 1.0))
        for change in self.pending:
            if chance.random() < share:
                _apply(names, change, self._made())
        return {name: self.files[file].after_cut(chance) for name, file in names.items()}

    def _made(self) -> dict[str, int]:
        """The files whose first names are not durable yet; a rename may be, all the same."""
        found = {}
        for change in self.pending:
            if isinstance(change, Made):
                found[change.name] = change.file
        return {**found, **self.names}


def _garbled(versions: Sequence[bytes], chance: random.Random) -> bytes:
    """Anything where something was being written; what lay in the sector before stays, or no log could last."""
    return bytes(each[0] if len(set(each)) == 1 else chance.randrange(256) for each in zip(*versions, strict=True))


def images(batch: Batch) -> Outcome:
    """Cut the power at any moment of a life; the next start must have all that was promised by then, and no more."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    whole = log.copy("whole")
    story = run(whole, log.plan, trouble=None).told
    begun = story.index(Begun())
    outcome.wrong += [f"I4: {each}" for each in out_of_order(story)]
    before_syncs = [at for at in range(begun, len(story)) if isinstance(story[at], Synced | FolderSynced)]
    for number in batch.rounds:
        chance = batch.chance(number)
        is_before_sync = chance.random() < _BEFORE_SYNC_SHARE
        moment = chance.choice(before_syncs) if is_before_sync else chance.randint(begun, len(story))
        disk = Disk()
        for change in story[:moment]:
            disk.take(change)
        folder = batch.folder / f"{number}"
        _write(folder, disk.after_cut(chance))
        recorder = log.recorder()
        recorder.take(Lived(0, tuple(story[:moment])))
        outcome.counts["images"] += 1
        try:
            outcome.counts["images with a tail cut"] += _start(log, folder, recorder)
            log.finish(folder, recorder, outcome, f"image {number} of seed {batch.seed}")
        except MeshError as error:
            outcome.wrong.append(f"image {number} of seed {batch.seed}: it does not start: {error}")
        remove(folder)
    return outcome


def out_of_order(story: Sequence[Told]) -> list[str]:
    """What was said before it was durable."""
    disk, wrong = Disk(), []
    for told in story:
        disk.take(told)
        open_files = {file for file, content in disk.files.items() if len(content.versions) > 1}
        named = {name for name, file in disk.names.items() if file in open_files}
        unsynced = {name for name in named if name.startswith("seg/")} | {_folder_of(each) for each in disk.pending}
        if isinstance(told, Acknowledged) and any(name.startswith("seg") for name in unsynced):
            wrong.append(f"an acknowledgement of leaf {told.index} with {sorted(unsynced)} not durable")
        if isinstance(told, Signed) and ({"checkpoints.log", "wm"} & named or "." in unsynced):
            wrong.append(f"a signed tree with {sorted(named | unsynced)} not durable")
        if isinstance(told, Kept) and "." in unsynced:
            wrong.append(f"generation {told.generation} of the keyring with {sorted(unsynced)} not durable")
    return wrong


def _start(log: SmallLog, folder: Path, recorder: Recorder) -> bool:
    """Hold what a start finds; returns whether it cut something off."""
    recorder.examine(folder, whole=False, second=False)
    return (folder / "lost+found").exists()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name in ("seg", "index"):
        (folder / name).mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def _folder_of(change: Made | Renamed | Removed) -> str:
    name = change.new if isinstance(change, Renamed) else change.name
    return str(Path(name).parent)


def _apply(names: dict[str, int], change: Made | Renamed | Removed, made: dict[str, int]) -> None:
    match change:
        case Made(name, file):
            names[name] = file
        case Renamed(old, new):
            file_or_none = names.pop(old, made.get(old))
            if file_or_none is not None:
                names[new] = file_or_none
        case Removed(name):
            names.pop(name, None)
