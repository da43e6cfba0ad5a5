"""It is responsible for which entries a reader wants: found by their places, so that no other entry is read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge

from libs.errors import Code, MeshError
from libs.events.records import ISSUER_SIZE
from libs.events.vault import VAULT_ID_SIZE
from services.ledger.storage.pieces import Piece


class SelectionMalformed(MeshError):
    """A vault's id has 16 bytes, an issuer 32, and a kind is a number of one byte."""

    code = Code.INVALID_ARGUMENT
    reason = "SELECTION_MALFORMED"


@dataclass(frozen=True, slots=True)
class Selection:
    """Entries that are of one of the kinds, of the vault and of the issuer; what is empty selects nothing out."""

    kinds: frozenset[int] = frozenset()
    vault_id: bytes = b""
    issuer: bytes = b""

    def __post_init__(self) -> None:
        if len(self.vault_id) not in (0, VAULT_ID_SIZE) or len(self.issuer) not in (0, ISSUER_SIZE):
            raise SelectionMalformed(f"a vault's id has {VAULT_ID_SIZE} bytes and an issuer {ISSUER_SIZE}")
        if any(kind > 255 for kind in self.kinds):
            raise SelectionMalformed("a kind is a number of one byte")

    @property
    def is_all(self) -> bool:
        return not (self.kinds or self.vault_id or self.issuer)


def select(piece: Piece, selection: Selection, low: int, high: int) -> Iterator[int]:
    """Yield a segment's selected indices from `low` up to, not including, `high`, in order."""
    wanted: list[list[Sequence[int]]] = []
    if selection.kinds:
        wanted.append([piece.of_kind(kind) for kind in selection.kinds])
    if selection.vault_id:
        wanted.append([piece.of_vault(selection.vault_id)])
    if selection.issuer:
        wanted.append([piece.of_issuer(selection.issuer)])
    fewest, *others = sorted(wanted, key=lambda places: sum(map(len, places)))
    for index in merge(*(_between(places, low, high) for places in fewest)):
        if all(any(_has(places, index) for places in alternatives) for alternatives in others):
            yield index


def _between(places: Sequence[int], low: int, high: int) -> Iterator[int]:
    for at in range(bisect_left(places, low), len(places)):
        index = places[at]
        if index >= high:
            return
        yield index


def _has(places: Sequence[int], index: int) -> bool:
    at = bisect_left(places, index)
    return at < len(places) and places[at] == index
