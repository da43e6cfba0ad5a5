"""It is responsible for where a reader of the ledger stands: kept on disk, so that a log that changed is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from libs import jcs
from libs.errors import Code, MeshError
from libs.files import write_durably
from libs.transparency.chain import chain_next
from libs.transparency.merkle import leaf_hash

_VERSION = 1


class TailStateDamaged(MeshError):
    """The file is not what this command wrote."""

    code = Code.DATA_LOSS
    reason = "TAIL_STATE_DAMAGED"


class ChainBroken(MeshError):
    """The ledger's entries do not follow from what was read before: the log was rewritten, cut or forged."""

    code = Code.DATA_LOSS
    reason = "LOG_DIVERGED"


@dataclass(frozen=True, slots=True)
class TailState:
    """The next index wanted, the chain head there, and the ledger's token for the same place."""

    origin: str
    next_index: int
    chain: bytes
    token: bytes
    peaks: tuple[bytes, ...] | None = None
    """Of the tree of what was read, where that was from the first entry on."""

    def document(self) -> bytes:
        return jcs.dumps(
            {
                "v": _VERSION,
                "origin": self.origin,
                "next_index": self.next_index,
                "chain": self.chain.hex(),
                "token": self.token.hex(),
                **({} if self.peaks is None else {"peaks": [peak.hex() for peak in self.peaks]}),
            }
        )


class ChainReader:
    """Follows the hash chain. From the middle of a log the first batch gives the head that later ones must follow.

    Where it passes the place that an earlier reading kept, the head must be the one of then.
    """

    def __init__(self, next_index: int, head: bytes | None, kept: TailState | None = None) -> None:
        self.next_index = next_index
        self.head = head
        self._kept = kept

    def take(self, entries: Sequence[tuple[int, bytes]], chain_after: bytes) -> None:
        """Accept entries, each an index and leaf data, that lead to this head. Raises `ChainBroken`."""
        head, index = self.head, self.next_index
        for number, leaf_data in entries:
            if number != index:
                raise ChainBroken(f"entry {index} was expected, and {number} came")
            if head is not None:
                head = chain_next(head, index, leaf_hash(leaf_data))
            index += 1
            self._verify_kept(index, head)
        if head is not None and head != chain_after:
            raise ChainBroken(f"the hash chain does not lead to what the ledger states before entry {index}")
        self.next_index, self.head = index, chain_after

    @property
    def is_short(self) -> bool:
        """Whether an earlier reading has seen more."""
        return self._kept is not None and self.next_index < self._kept.next_index

    def verify_reaches_kept(self) -> None:
        """Raise `ChainBroken` when the log ends before what an earlier reading has seen."""
        if self._kept is not None and self.is_short:
            raise ChainBroken(
                f"the log ends before entry {self.next_index}, but {self._kept.next_index} were read once"
            )

    def _verify_kept(self, index: int, head: bytes | None) -> None:
        kept = self._kept
        if kept is not None and head is not None and index == kept.next_index and head != kept.chain:
            raise ChainBroken(f"the log has another history before entry {index} than was read once")


def load_tail_state(path: Path, origin: str) -> TailState | None:
    """Return what was kept for this log, or nothing. Raises `TailStateDamaged`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TailStateDamaged(f"cannot read {path}: {error.strerror}") from error
    try:
        value = jcs.loads_object(data)
        if value["v"] != _VERSION:
            raise ValueError("another version")
        peaks = None if "peaks" not in value else tuple(bytes.fromhex(peak) for peak in value["peaks"])
        state = TailState(
            str(value["origin"]),
            int(value["next_index"]),
            bytes.fromhex(value["chain"]),
            bytes.fromhex(value["token"]),
            peaks,
        )
        if peaks is not None and len(peaks) != state.next_index.bit_count():
            raise ValueError("another number of subtrees than a tree of that size has")
    except (jcs.JsonMalformed, KeyError, TypeError, ValueError) as error:
        raise TailStateDamaged(f"{path} is damaged: remove it to read from the beginning") from error
    return state if state.origin == origin else None


def keep_tail_state(path: Path, state: TailState) -> None:
    """Keep the state, whole or not at all."""
    write_durably(path, state.document())
