"""It is responsible for judging a log by what it serves to everybody, without its files.

Times and entries are not served, so numbers that are missing can be told, but not for how long nor why.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from libs.audit.log.findings import Findings, Status
from libs.audit.log.frames import KINDS, TENANTS_KINDS
from libs.audit.log.notes import Checkpoint, Key, NoteUnreadable, read_checkpoint
from libs.audit.log.promises import Held, Promises, Tree
from libs.audit.log.reading import Reading
from libs.audit.log.sequences import Sequences
from libs.audit.log.tenants import TenantVault
from libs.audit.log.tiles import WIDTH, Fetch, TileTree, TileWrong
from libs.audit.log.tree import (
    Frontier,
    PathWrong,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

CHECKPOINT = "checkpoint"
_LEAF = struct.Struct(">4sB3sQ32s16s32s")
_UPPER = range(8, 64, 8)


@dataclass(frozen=True, slots=True)
class ServedQuestion:
    """What is asked of a served log."""

    keys: tuple[Key, ...]
    with_leaves: bool = True
    """Whether every leaf is read, or hashes alone."""
    sampled: Sequence[int] | None = None
    """Only these leaves, each with its path to the root."""
    outside: Sequence[Held] = ()
    sizes: frozenset[int] = frozenset()
    tag_key: bytes | None = None


def newest_head(fetch: Fetch) -> Checkpoint:
    """Return the head that is served, unproven. Raises `TileWrong`."""
    note = fetch(CHECKPOINT)
    if note is None:
        raise TileWrong(CHECKPOINT, "it is not served")
    try:
        return read_checkpoint(note)
    except NoteUnreadable as error:
        raise TileWrong(CHECKPOINT, str(error)) from error


def read_served(fetch: Fetch, question: ServedQuestion) -> Reading:
    """Read a served log. What is wrong is in the findings; raises only what keeps anything from being fetched."""
    findings = Findings()
    try:
        head = newest_head(fetch)
    except TileWrong as error:
        findings.add(Status.DAMAGED, error.path, None, error.why)
        return Reading(findings, None)
    return _ServedReader(TileTree(fetch, head.size), head, question, findings).run()


class _ServedReader:
    def __init__(self, tree: TileTree, head: Checkpoint, question: ServedQuestion, findings: Findings) -> None:
        self._tree, self._head, self._question, self._findings = tree, head, question, findings
        self._sequences = Sequences()
        self._reads_every_leaf = question.with_leaves and question.sampled is None
        tag_key = question.tag_key if self._reads_every_leaf else None
        self._tenant = None if tag_key is None else TenantVault(tag_key)

    def run(self) -> Reading:
        head, question = self._head, self._question
        is_whole, roots = True, {head.size: head.root}
        try:
            if question.sampled is None:
                self._read_all()
            else:
                self._read_sampled(question.sampled)
            for size in {held.checkpoint.size for held in question.outside} | question.sizes:
                if size <= head.size:
                    roots[size] = self._root_at(size)
        except TileWrong as error:
            self._findings.add(Status.DAMAGED, error.path, None, error.why)
            is_whole = False
        if is_whole and self._reads_every_leaf:
            self._tell_holes()
        if question.tag_key is not None and self._tenant is None:
            self._findings.remark("the tenant's entries are not counted: not every leaf was read")
        promises = Promises(head.origin, self._findings, outside=(Held(CHECKPOINT, None, head), *question.outside))
        promises.judge(Tree(head.size, is_whole, roots, {}), question.keys, (CHECKPOINT, 0))
        return Reading(
            findings=self._findings,
            description=None,
            size=head.size,
            root=head.root,
            issuers=len(self._sequences),
            roots=roots,
            newest=promises.newest,
            contradictions=tuple(promises.contradictions),
            keys=question.keys,
            tenant_entries=None if self._tenant is None else self._tenant.last,
            tenant_whole=None if self._tenant is None else self._tenant.is_whole,
        )

    def _read_all(self) -> None:
        frontier = Frontier()
        upper: dict[int, list[bytes]] = {}
        for number, (path, hashes) in enumerate(self._tree.leaves()):
            if self._question.with_leaves:
                self._read_bundle(number, path, hashes)
            for level, nodes in frontier.add(hashes, keep=_UPPER).items():
                upper.setdefault(level, []).extend(nodes)
        for level, nodes in upper.items():
            self._tree.verify_upper(level // 8, nodes)
        if frontier.root() != self._head.root:
            raise TileWrong("tile/0", "the hashes do not lead to the signed root")

    def _read_bundle(self, number: int, path: str, hashes: Sequence[bytes]) -> None:
        leaves = self._tree.bundle(number)
        if [leaf_hash(leaf) for leaf in leaves] != list(hashes):
            raise TileWrong(path.replace("tile/0", "tile/entries", 1), "its leaves are not those of the hashes")
        for index, leaf in enumerate(leaves, number * WIDTH):
            self._take(index, leaf)

    def _take(self, index: int, leaf: bytes) -> None:
        magic, kind, reserved, issuer_seq, issuer, tag, commitment = _LEAF.unpack(leaf)
        if magic != b"TML1" or any(reserved) or kind not in KINDS or issuer_seq < 1:
            self._findings.add(Status.DAMAGED, "tile/entries", None, f"entry {index} has no leaf of version 1")
            return
        if self._sequences.add_run(issuer, [issuer_seq], [commitment], 0):
            what = f"entry {index}: issuer {issuer.hex()[:16]}: number {issuer_seq} stands for a second entry"
            self._findings.add(Status.GAP, "tile/entries", None, what)
        if self._tenant is not None and kind in TENANTS_KINDS:
            wrong = self._tenant.add(tag, None)
            if wrong is not None:
                self._findings.add(Status.GAP, "tile/entries", None, f"entry {index}: {wrong}")

    def _read_sampled(self, sampled: Sequence[int]) -> None:
        head, tree = self._head, self._tree
        if tree.root(head.size) != head.root:
            raise TileWrong("tile", "the hashes do not lead to the signed root")
        for index in sampled:
            leaf = tree.bundle(index // WIDTH)[index % WIDTH]
            path = tree.roots_over(inclusion_ranges(index, head.size))
            try:
                verify_inclusion(leaf_hash(leaf), index, head.size, path, head.root)
            except PathWrong as error:
                raise TileWrong("tile/entries", f"entry {index} is not in the signed tree: {error}") from error

    def _root_at(self, size: int) -> bytes:
        """Return the root of a beginning of the signed tree, proven by it."""
        head, root = self._head, self._tree.root(size)
        if 0 < size < head.size:
            proof = self._tree.roots_over(consistency_ranges(size, head.size))
            try:
                verify_consistency(size, head.size, proof, root, head.root)
            except PathWrong as error:
                raise TileWrong("tile", f"the hashes of the first {size} leaves are not the signed tree's") from error
        return root

    def _tell_holes(self) -> None:
        for hole in self._sequences.holes():
            numbers = f"number {hole.first}" if hole.first == hole.last else f"numbers {hole.first} to {hole.last}"
            what = f"issuer {hole.issuer.hex()[:16]}: {numbers} missing; since when and why, only the log's files say"
            self._findings.remark(what)
