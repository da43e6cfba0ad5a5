"""It is responsible for what the book of keys says, as a value: what a change makes of it, and its bytes.

What is written in a book only grows: the newest of two epochs wins, retirement stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from libs import jcs
from libs.policy.members import Members
from libs.policy.releases import KEY_NAME
from services.kms.changes import MAX_EPOCH, Change, ChangeMalformed, read_change

_STRETCH = 250
_HEX = re.compile(r"([0-9a-f]{2})*")


@dataclass(frozen=True, slots=True)
class Page:
    """What the book says of one key."""

    epoch: int
    """The newest, from 1."""
    since_ms: int
    """When that began, Unix milliseconds."""
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """How far the log was read, and what it was heard to have by then of what is held here."""

    token: bytes = b""
    """The ledger's; empty before the reading began."""
    policy_version: int = 0
    """The newest."""
    revocations: bytes = b""
    """Digest of the set of them."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Everything that the book says."""

    keys: Mapping[str, Page] = field(default_factory=dict)
    unlogged: tuple[Change, ...] = ()
    """Changes that were not seen in the log yet, oldest first."""
    place: Place = Place()

    def has(self, change: Change) -> bool:
        """Say whether a change makes no difference any more."""
        page = self.keys.get(change.name)
        if page is None:
            return False
        return page.retired if change.epoch is None else page.epoch >= change.epoch

    def newest(self, name: str, changes: Iterable[Change]) -> int:
        """Return the newest epoch of a key after these changes, without the pages of all the others after them."""
        page = self.keys.get(name)
        begun = (change.epoch for change in changes if change.name == name and change.epoch is not None)
        return max((1 if page is None else page.epoch, *begun))

    def after(self, changes: Iterable[Change]) -> Pages:
        """Return what the book says after these changes."""
        keys = dict(self.keys)
        for change in changes:
            page = keys.get(change.name, Page(1, change.at_ms))
            if change.epoch is None:
                keys[change.name] = replace(page, retired=True)
            elif change.epoch > page.epoch:
                keys[change.name] = replace(page, epoch=change.epoch, since_ms=change.at_ms)
        return replace(self, keys=keys)

    def encode(self) -> bytes:
        """Return canonical JSON.

        It is put together of stretches of keys: encoding is one call to C, and in one for all of a full book the
        interpreter would run no other thread for tens of milliseconds, the event loop's neither.
        """
        names = sorted(self.keys)
        stretches = [names[at : at + _STRETCH] for at in range(0, len(names), _STRETCH)]
        keys = b",".join(self._encode_keys(stretch) for stretch in stretches)
        unlogged = [change.to_body() for change in self.unlogged]
        place = {
            "token": self.place.token.hex(),
            "policy_version": self.place.policy_version,
            "revocations": self.place.revocations.hex(),
        }
        return b'{"keys":{' + keys + b"}," + jcs.dumps({"v": 1, "unlogged": unlogged, "place": place})[1:]

    def _encode_keys(self, names: Sequence[str]) -> bytes:
        """The members of some keys, without the braces around them."""
        pages = ((name, self.keys[name]) for name in names)
        members = {
            name: {"epoch": page.epoch, "since_ms": page.since_ms, "retired": page.retired} for name, page in pages
        }
        return jcs.dumps(members)[1:-1]


def parse(data: bytes) -> Pages:
    """Read what `encode` wrote. Raises `ChangeMalformed`."""
    try:
        value = jcs.loads_object(data)
    except jcs.JsonMalformed as error:
        raise ChangeMalformed(f"the book is {error}") from error
    members = Members(value, "", ChangeMalformed)
    members.integer("v", 1, 1)
    keys = members.object("keys")
    pages = Pages(
        keys={name: _page(keys.object(name)) for name in keys.names(KEY_NAME)},
        unlogged=tuple(read_change(entry) for entry in members.objects("unlogged")),
        place=_place(members.object("place")),
    )
    members.end()
    return pages


def _page(members: Members) -> Page:
    page = Page(members.integer("epoch", 1, MAX_EPOCH), members.integer("since_ms", 0), members.flag("retired"))
    members.end()
    return page


def _place(members: Members) -> Place:
    place = Place(
        token=bytes.fromhex(members.text("token", _HEX)),
        policy_version=members.integer("policy_version", 0),
        revocations=bytes.fromhex(members.text("revocations", _HEX)),
    )
    members.end()
    return place
