"""It is responsible for who the log says may write, read from its entries when an issuer is met again.

An index says only where to look. What counts is the entry there, which is verified against the tree and against its own
commitment, so no derived file can make a writer or take its end away.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.events.keyset import Keyset
from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency.leaf import Kind
from services.ledger.intake.issuers import Writer, closed_by, logged_writer, read_keyset
from services.ledger.storage.reading import StoredEntry


class EntryPlaces(Protocol):
    """Where entries are."""

    def index_of(self, issuer: bytes, issuer_seq: int) -> int | None: ...

    def closings(self, issuer: bytes) -> list[int]: ...


class Entries(Protocol):
    """Who reads them, verified."""

    def entry(self, index: int) -> StoredEntry: ...


class LoggedWriters:
    """The issuers that the log has admitted."""

    def __init__(self, places: EntryPlaces, entries: Entries) -> None:
        self._places = places
        self._entries = entries

    def of(self, issuer: bytes) -> Writer | None:
        """Return an issuer as its keyset shows it, with the end that a later start has set. Raises `LogDamaged`."""
        first = self._places.index_of(issuer, 1)
        if first is None or (found := self._keyset(first)) is None:
            return None
        writer = logged_writer(*found)
        for later in self._places.closings(issuer):
            successor = self._keyset(later)
            if later > first and successor is not None:
                writer = closed_by(writer, logged_writer(*successor), successor[0].previous)
        return writer

    def _keyset(self, index: int) -> tuple[Keyset, Ed25519PublicKey] | None:
        stored = self._entries.entry(index)
        if stored.leaf.kind is not Kind.KEYSET:
            return None
        return read_keyset(parse_entry(stored.row.body[SALT_SIZE:]).body, stored.leaf.issuer)
