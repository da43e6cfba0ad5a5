"""Responsible for an entry that lies open in the log, shown with its salt and its place in one signed tree."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.client.ledger import EntryNotCommitted
from libs.errors import Code, MeshError
from libs.events.records import Entry, commit_to, parse_entry
from libs.transparency import leaf as leaves
from libs.transparency import merkle
from libs.transparency.chain import entry_id
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind


class EntryOfAnotherKind(MeshError):
    """The entry that is shown is not about what it was shown for."""

    code = Code.PERMISSION_DENIED
    reason = "ENTRY_OF_ANOTHER_KIND"


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    """What whoever gathered it says of one entry. Nothing of it is proven before `verify`."""

    canonical: bytes = field(repr=False)
    salt: bytes
    leaf_data: bytes
    index: int
    path: tuple[bytes, ...] = field(repr=False)
    """From its leaf to the root of the tree."""

    def verify(self, kind: Kind, tree: Checkpoint) -> Entry:
        """Return the entry if the tree has it at this index.

        Raises `EntryOfAnotherKind`, `EntryNotCommitted`, `ProofInvalid`, and what a malformed entry or leaf raises.
        """
        entry = parse_entry(self.canonical)
        leaf = leaves.parse(self.leaf_data)
        if entry.kind is not kind:
            raise EntryOfAnotherKind(f"the entry is of kind {entry.kind.name}, not {kind.name}")
        if commit_to(self.salt, self.canonical) != leaf.commitment:
            raise EntryNotCommitted("the leaf commits to another entry than the one shown")
        if (entry.kind, entry.issuer, entry.issuer_seq) != (leaf.kind, leaf.issuer, leaf.issuer_seq):
            raise EntryNotCommitted("entry and leaf name different issuers, numbers or kinds")
        merkle.verify_inclusion(merkle.leaf_hash(self.leaf_data), self.index, tree.size, self.path, tree.root)
        return entry


def id_of(entry: Entry) -> bytes:
    """Return the id by which other entries name an entry, 32 bytes."""
    return entry_id(entry.issuer, entry.issuer_seq)
