"""It is responsible for the whole of a log read once, from its first byte to its last, and judged."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.audit.log import segments
from libs.audit.log.announcements import Announcements
from libs.audit.log.contents import Contents, OnEntry
from libs.audit.log.description import Description, read_description
from libs.audit.log.findings import BytesWrong, Findings, Status
from libs.audit.log.frames import PUBLIC, Frame
from libs.audit.log.notes import Checkpoint, Key
from libs.audit.log.place import Place
from libs.audit.log.promises import (
    BESIDE,
    CHECKPOINTS_LOG,
    RELEASED,
    WATERMARK,
    Held,
    Promises,
    Tree,
)
from libs.audit.log.tenants import TenantVault
from libs.audit.log.tree import EMPTY_ROOT
from libs.audit.log.walk import Located, LogSource, Seal, Walk

DESCRIPTION = "log.json"
BLOCK_LEAVES = 65_536


class Depth(Enum):
    """How much of a log is read."""

    FULL = "full"
    """Every byte."""
    TREE = "tiles"
    """Everything but the bodies of tenants' entries."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which segments there are. What comes before them is a segment's word, until a signed root bears it out."""

    first: int
    """Leaf with which the first begins."""
    is_to_end: bool
    """Whether they reach to the end that the log had."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a log."""

    depth: Depth = Depth.FULL
    sampled: frozenset[int] = frozenset()
    """Entries whose bodies are read although the others' are not."""
    outside: Sequence[Held] = ()
    """Tree heads that somebody else holds."""
    sizes: frozenset[int] = frozenset()
    """Where else the root is wanted."""
    keys: tuple[Key, ...] = ()
    """Checkpoint keys that are known without the log."""
    tag_key: bytes | None = None
    on_entry: OnEntry | None = None
    part: Part | None = None
    """Set where the files are only a part of the log."""
    block_leaves: int = BLOCK_LEAVES
    """Part of the format; only tests have another."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a log was found to be."""

    findings: Findings
    description: Description | None
    size: int = 0
    root: bytes = EMPTY_ROOT
    chain: bytes = b""
    wall_ns: int = 0
    issuers: int = 0
    roots: dict[int, bytes] | None = None
    """At the sizes that were asked for or promised, as far as the log goes."""
    newest: Checkpoint | None = None
    """The largest signed head that holds."""
    contradictions: tuple[tuple[Checkpoint, Checkpoint | None], ...] = ()
    """Signed heads that do not, each with one of the same size that does, where there is one."""
    keys: tuple[Key, ...] = ()
    """Checkpoint keys, by the log's own keysets and as given."""
    tenant_entries: int | None = None
    """The tenant's highest number, where its key was given and every leaf was read."""
    tenant_whole: bool | None = None
    """Whether each number up to that is on one leaf."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """How many bytes of each segment's file are the log's."""


def read_log(source: LogSource, question: Question) -> Reading:
    """Read a log. What is wrong with it is in the findings; raises only what keeps its files from being read."""
    findings = Findings()
    stored = source.read(DESCRIPTION)
    try:
        if stored is None:
            raise BytesWrong(0, "it is missing: there is no telling which log this is")
        description = read_description(stored)
    except BytesWrong as error:
        findings.add(Status.DAMAGED, DESCRIPTION, error.at, error.why)
        return Reading(findings, None)
    return _Reader(source, question, description, findings).run()


class _Reader:
    """One reading. Promises are read first: a log that grows meanwhile must not seem shorter than it promised."""

    def __init__(self, source: LogSource, question: Question, description: Description, findings: Findings) -> None:
        self._source, self._question, self._findings = source, question, findings
        self._description = description
        self._part = part = question.part
        is_part = part is not None and part.first > 0
        # A tenant's numbers begin with the log.
        self._tenant = None if question.tag_key is None or is_part else TenantVault(question.tag_key)
        said = Announcements(findings, is_part)
        self._contents = Contents(description.origin, findings, said, self._tenant, is_part, question.on_entry)
        self._place = Place(description.origin, question.block_leaves)
        self._promises = Promises(description.origin, findings, outside=question.outside)
        self._wanted: list[int] = []
        self._roots = {0: EMPTY_ROOT}
        self._chains: dict[int, bytes] = {}

    def run(self) -> Reading:
        read, promises, place = self._source.read, self._promises, self._place
        released = {name: note for name in RELEASED if (note := read(name)) is not None}
        promises.read(released, read(CHECKPOINTS_LOG) or b"", read(WATERMARK) or b"")
        for name in BESIDE:
            beside = self._source.open_beside(name)
            if beside is not None:
                with beside:
                    promises.read_beside(name, beside)
        self._wanted = sorted({*promises.sizes, *self._question.sizes})
        if self._part is not None and not self._begin(self._part):
            return Reading(self._findings, self._description)
        walk = Walk(self._source, place, self._findings, self._which, self._take)
        is_whole = walk.run()
        if is_whole:
            self._contents.conclude()
        self._judge_seals(walk.seals)
        self._judge_bare(walk.bare)
        keys = (*self._question.keys, *self._own_keys())
        for held, root in self._contents.announcements.heads:
            promises.logged.append(held)
            if root is not None:
                self._roots[held.checkpoint.size] = root
        is_to_end = is_whole and (self._part is None or self._part.is_to_end)
        if is_whole and not is_to_end:
            self._findings.remark(f"only a part of the log, which went on after these {place.size} entries")
        tree = Tree(place.size, is_to_end, self._roots, self._chains)
        promises.judge(tree, keys, (walk.file, walk.end))
        self._judge_borne_out(walk.file)
        return Reading(
            findings=self._findings,
            description=self._description,
            size=place.size,
            root=place.frontier.root(),
            chain=place.chain,
            wall_ns=place.wall_ns,
            issuers=self._contents.issuers,
            roots=self._roots,
            newest=promises.newest,
            contradictions=tuple(promises.contradictions),
            keys=keys,
            tenant_entries=None if self._tenant is None else self._tenant.last,
            tenant_whole=None if self._tenant is None else self._tenant.is_whole,
            lengths=walk.lengths,
        )

    def _begin(self, part: Part) -> bool:
        """Take the first segment's word for what comes before it. Returns False where it has none."""
        if part.first == 0:
            return True
        name = segments.file_name(part.first)
        try:
            with self._source.open_segment(name) as file:
                self._place.begin_at(segments.read_header(file.read(segments.HEADER_SIZE)))
        except BytesWrong as error:
            self._findings.add(Status.DAMAGED, name, error.at, error.why)
            return False
        return True

    def _which(self, frame: Frame) -> Iterable[int] | None:
        if self._question.depth is Depth.FULL:
            return None
        first, sampled = frame.header.first, self._question.sampled
        return [at for at, vault in enumerate(frame.rows.vaults) if vault == PUBLIC or first + at in sampled]

    def _take(self, located: Located) -> None:
        before, after = located.before.size, self._place.size
        low, high = bisect_left(self._wanted, before + 1), bisect_left(self._wanted, after + 1)
        for size in self._wanted[low:high]:
            grown = self._place.frontier
            if size < after:
                grown = located.before.copy()
                grown.add(located.frame.leaf_hashes[: size - before])
            else:
                self._chains[size] = self._place.chain
            self._roots[size] = grown.root()
        self._contents.take(located)

    def _own_keys(self) -> Iterable[Key]:
        return (writer.checkpoint_key for writer in self._contents.writers.values() if writer.checkpoint_key)

    def _judge_bare(self, bare: Mapping[str, int]) -> None:
        for name, end in bare.items():
            if end > self._contents.prune_limit:
                what = "the bodies of tenants' entries are gone, and no entry allows that"
                self._findings.add(Status.DAMAGED, name, None, what)
        if bare:
            self._findings.remark(f"the bodies of tenants' entries before {max(bare.values())} were pruned")

    def _judge_borne_out(self, file: str) -> None:
        """A log that was signed is signed for good: without a head its files could be anybody's."""
        newest = self._promises.newest
        if self._part is not None and (newest is None or newest.size <= self._part.first):
            what = "no signed head that holds covers this part of the log: nothing bears out what came before it"
            self._findings.add(Status.UNPROVEN, file, None, what)
        elif self._place.size and newest is None:
            self._findings.add(Status.UNPROVEN, file, None, "no signed head holds: nothing bears the log out")

    def _judge_seals(self, seals: Sequence[Seal]) -> None:
        if self._contents.is_part:
            self._findings.remark("only a part of the log: whose key sealed its segments cannot be told")
            return
        keys = [writer.ack_key for writer in self._contents.writers.values() if writer.ack_key]
        for seal in seals:
            if not any(_signed(seal, key) for key in reversed(keys)):
                what = "no ledger that the log knows has sealed the segment"
                self._findings.add(Status.UNPROVEN, seal.file, seal.offset, what)
            for said in self._contents.announcements.seals_of(seal.footer.first, seal.footer.count):
                # Members cut their files alike at times, and each seals its own.
                if said.footer != seal.footer.digest and said.ack_key is not None and _signed(seal, said.ack_key):
                    what = f"its ledger says in entry {said.index} that it sealed the segment with another footer"
                    self._findings.add(Status.DAMAGED, seal.file, seal.offset, what)


def _signed(seal: Seal, key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(seal.footer.signature, seal.footer.signed)
    except (InvalidSignature, ValueError):
        return False
    return True
