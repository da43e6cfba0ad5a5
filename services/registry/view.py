"""It is responsible for what the store says of all nodes: entry by entry, in order of their revisions; it does no I/O.

The store keeps the last entry of each key, marks of deletion included. So whoever knows the state at any revision needs
only the keys that changed since, and can get them at every registry: `since` is complete for every revision but those
before the floor, below which marks were swept away.

One key holds a node's lease, another an operator's drain of the same name, and one holds the history: the epoch, a
random name for this life of the store, and the floor.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import structlog

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.members import Members
from services.registry.following import Entry
from services.registry.providers import RECORD_VERSION, Drain, Provider, ProviderRecordMalformed, decode, decode_drain

HISTORY_KEY = "history"
_NODE, _DRAIN = "node.", "drain."
_EPOCH_BYTES = 16

log = structlog.get_logger()


class HistoryMalformed(MeshError):
    """The store does not say which life of it this is."""

    code = Code.DATA_LOSS
    reason = "STORE_HISTORY_MALFORMED"


class EpochEnded(MeshError):
    """The store began another life: what is known of the one before is worth nothing."""

    code = Code.UNAVAILABLE
    reason = "STORE_EPOCH_ENDED"


@dataclass(frozen=True, slots=True)
class Position:
    """A revision of the store, in one of its lives."""

    epoch: str
    sequence: int


@dataclass(frozen=True, slots=True)
class History:
    """The life of the store, and the revision up to which marks of deletion may be gone."""

    epoch: str
    floor: int = 0

    def encode(self) -> bytes:
        return jcs.dumps({"v": RECORD_VERSION, "epoch": self.epoch, "floor": self.floor})


def decode_history(data: bytes) -> History:
    """Raises `HistoryMalformed`."""
    try:
        members = Members(jcs.loads_object(data), "", HistoryMalformed)
    except jcs.JsonMalformed as error:
        raise HistoryMalformed(f"the history cannot be read: {error}") from error
    members.integer("v", RECORD_VERSION, RECORD_VERSION)
    history = History(members.text("epoch", re.compile(f"[0-9a-f]{{{2 * _EPOCH_BYTES}}}")), members.integer("floor", 0))
    members.end()
    return history


@dataclass(frozen=True, slots=True)
class Change:
    """A provider that is new or changed, or (None) one that is gone, by its SPIFFE ID."""

    spiffe_id: str
    provider: Provider | None
    position: Position


@dataclass(slots=True)
class _Name:
    """All that the store holds under one node's name."""

    provider: Provider | None = None
    drain: Drain | None = None
    lease_revision: int = 0
    revision: int = 0
    """Of the last entry of either key."""

    @property
    def listed(self) -> Provider | None:
        return None if self.provider is None else replace(self.provider, drain=self.drain)


class View:
    """The state at one revision."""

    def __init__(self, trust_domain: str) -> None:
        self._prefix = f"spiffe://{trust_domain}/node/"
        self._names: dict[str, _Name] = {}
        self._history = History("")
        self._revision = 0

    @property
    def position(self) -> Position:
        return Position(self._history.epoch, self._revision)

    @property
    def history(self) -> History:
        return self._history

    def providers(self) -> list[Provider]:
        """Every node with a lease, those that ran out and are not deleted yet included, in order of SPIFFE ID."""
        listed = (name.listed for _, name in sorted(self._names.items()))
        return [provider for provider in listed if provider is not None]

    def stored(self, spiffe_id: str) -> tuple[Provider, int] | None:
        """Return a node's lease without its drain, as it is stored, and its revision."""
        name = self._names.get(spiffe_id.removeprefix(self._prefix))
        return None if name is None or name.provider is None else (name.provider, name.lease_revision)

    def expired(self, now_ms: float) -> list[tuple[str, int]]:
        """Return the keys of leases that have run out, and their revisions."""
        return [
            (_NODE + instance, name.lease_revision)
            for instance, name in self._names.items()
            if name.provider is not None and name.provider.lease_until_ms <= now_ms
        ]

    def ended(self) -> list[tuple[str, int]]:
        """Return the names of which nothing but marks of deletion is left, oldest first, and the last revision."""
        gone = [(name.revision, instance) for instance, name in self._names.items() if _is_empty(name)]
        return [(instance, revision) for revision, instance in sorted(gone)]

    def take(self, entry: Entry) -> Change | None:
        """Take the next entry; return what it changes for watchers.

        Raises `EpochEnded` or `HistoryMalformed` when nothing that came before counts any more.
        """
        key, value, revision = entry.key, entry.value, entry.revision
        self._revision = max(self._revision, revision)
        if key == HISTORY_KEY:
            self._take_history(value)
            return None
        prefix = next((prefix for prefix in (_NODE, _DRAIN) if key.startswith(prefix)), None)
        if prefix is None:
            log.error("a key of the store is passed over", key=key)
            return None
        instance = key.removeprefix(prefix)
        name = self._names.setdefault(instance, _Name())
        before = name.listed
        name.revision = revision
        if prefix == _NODE:
            name.lease_revision = revision
            name.provider = self._provider(key, value)
        else:
            name.drain = _drain(key, value)
        if _is_empty(name) and revision <= self._history.floor:
            del self._names[instance]
        if name.listed is None and before is None:
            return None
        return Change(self._prefix + instance, name.listed, self.position)

    def is_behind(self, position: Position) -> bool:
        """Whether the position is of this life of the store, and was not reached here yet."""
        return position.epoch == self._history.epoch and position.sequence > self._revision

    def since(self, position: Position) -> list[Change] | None:
        """Return the last change of everything that changed after a position, or None when that is not known."""
        if position.epoch != self._history.epoch or not self._history.floor <= position.sequence <= self._revision:
            return None
        changed = [
            (name.revision, instance, name)
            for instance, name in self._names.items()
            if name.revision > position.sequence
        ]
        return [
            Change(self._prefix + instance, name.listed, Position(position.epoch, revision))
            for revision, instance, name in sorted(changed, key=lambda change: change[0])
        ]

    def _take_history(self, value: bytes | None) -> None:
        history = decode_history(value or b"")
        if self._history.epoch not in ("", history.epoch):
            raise EpochEnded("the store began another life")
        self._history = history
        for instance, revision in self.ended():
            if revision <= history.floor:
                del self._names[instance]

    def _provider(self, key: str, value: bytes | None) -> Provider | None:
        if value is None:
            return None
        try:
            provider = decode(value)
            if provider.spiffe_id != self._prefix + key.removeprefix(_NODE):
                raise ProviderRecordMalformed("it is about another name than its key's")
        except ProviderRecordMalformed as error:
            log.error("a stored provider is passed over", key=key, detail=str(error))
            return None
        return provider


def state_digest(providers: Iterable[Provider]) -> bytes:
    """Digest the state as `Heartbeat` in registry.proto says, given in order of SPIFFE ID."""
    state = [
        {
            "draining": provider.draining or provider.drain is not None,
            "drained_by": "" if provider.drain is None else provider.drain.by,
            "endpoint": provider.endpoint,
            "lease_until_ms": provider.lease_until_ms,
            "running": provider.load.running,
            "session_id": provider.session_id,
            "spiffe_id": provider.spiffe_id,
            "spki_sha256": provider.spki_sha256,
            "waiting": provider.load.waiting,
        }
        for provider in providers
    ]
    return hashlib.sha256(jcs.dumps(state)).digest()


def lease_key(spiffe_id: str) -> str:
    """The store's key for a node's lease: its instance name is unique within the role."""
    return _NODE + spiffe_id.rpartition("/")[2]


def drain_key(spiffe_id: str) -> str:
    """The store's key for an operator's drain of a node."""
    return _DRAIN + spiffe_id.rpartition("/")[2]


def _is_empty(name: _Name) -> bool:
    return name.provider is None and name.drain is None


def _drain(key: str, value: bytes | None) -> Drain | None:
    """What cannot be read as a drain drains nonetheless: somebody meant to keep work away."""
    if value is None:
        return None
    try:
        return decode_drain(value)
    except ProviderRecordMalformed as error:
        log.error("a stored drain cannot be read", key=key, detail=str(error))
        return Drain("", "", 0)
