"""Responsible for event logs: reading them, recomputing their digests, replaying registers, identity events.

A digest that the log states proves nothing: every runtime event's digest is recomputed from its name and payload, and
the signed register decides. dstack strips the digests of runtime events from its logs, so they may be absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.steps import Note, ignore

RUNTIME_EVENT_TYPE = 0x08000001
RUNTIME_REGISTER = 3
MAX_EVENTS = 512
_MEMBERS = frozenset({"imr", "event_type", "digest", "event", "event_payload"})
_DIGEST_BYTES = 48
_READY = "system-ready"
_REPLAYED = tuple(f"register {imr}: as signed, and as the log replays" for imr in range(RUNTIME_REGISTER + 1))


class EventLogMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "EVENT_LOG_MALFORMED"


class EventDigestMismatch(MeshError):
    """An event states a digest that its name and payload do not have."""

    code = Code.PERMISSION_DENIED
    reason = "EVENT_DIGEST_MISMATCH"


class EventLogDoesNotReplay(MeshError):
    """The log is not the one that the signed registers measured."""

    code = Code.PERMISSION_DENIED
    reason = "EVENT_LOG_DOES_NOT_REPLAY"


class IdentityEventMissing(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "IDENTITY_EVENT_MISSING"


class IdentityEventRepeated(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "IDENTITY_EVENT_REPEATED"


class IdentityEventLate(MeshError):
    """An identity event stands after `system-ready`, where applications may write."""

    code = Code.PERMISSION_DENIED
    reason = "IDENTITY_EVENT_LATE"


class IdentityEventMalformed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "IDENTITY_EVENT_MALFORMED"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log. `digest` is what the log states, possibly nothing."""

    imr: int
    event_type: int
    digest: bytes
    name: str
    payload: bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "imr": self.imr,
            "event_type": self.event_type,
            "digest": self.digest.hex(),
            "event": self.name,
            "event_payload": self.payload.hex(),
        }


@dataclass(frozen=True, slots=True)
class Identity:
    """What the measured boot recorded about itself before it let applications run."""

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    key_provider: bytes
    os_image_hash: bytes


# Event name and payload size (None: any but empty), in the order of the members of `Identity`.
_IDENTITY_EVENTS: tuple[tuple[str, int | None], ...] = (
    ("app-id", 20),
    ("compose-hash", 32),
    ("instance-id", 20),
    ("key-provider", None),
    ("os-image-hash", 32),
)


def parse(value: Any) -> tuple[Event, ...]:
    """Read a parsed JSON list of events. Raises `EventLogMalformed`; judges nothing."""
    if not isinstance(value, list):
        raise EventLogMalformed("the event log must be a list")
    if len(value) > MAX_EVENTS:
        raise EventLogMalformed(f"the event log has {len(value)} events, at most {MAX_EVENTS} are read")
    try:
        return tuple(_event(entry) for entry in value)
    except ValueError as error:
        raise EventLogMalformed(str(error)) from error


def _event(entry: Any) -> Event:
    fields = shape.members(entry, _MEMBERS, "event")
    event = Event(
        shape.integer(fields["imr"], "imr", RUNTIME_REGISTER),
        shape.integer(fields["event_type"], "event_type", 2**32 - 1),
        shape.binary(fields["digest"], "digest", 0, _DIGEST_BYTES),
        shape.text(fields["event"], "event"),
        shape.binary(fields["event_payload"], "event_payload"),
    )
    if event.imr != RUNTIME_REGISTER:
        if not event.digest:
            raise ValueError("only runtime events may come without a digest")
    elif event.event_type != RUNTIME_EVENT_TYPE:
        raise ValueError("register 3 holds an event that is not a runtime event")
    elif not event.name or ":" in event.name:
        # The first digest form separates name from payload by a colon and nothing else.
        raise ValueError("the name of a runtime event must not be empty or hold a colon")
    return event


def verify_replay(events: Sequence[Event], registers: Sequence[bytes], note: Note = ignore) -> None:
    """Prove that the log is what the four signed registers measured.

    Register 3 always; registers 0 to 2 where the log has events for them (their values are also allow-listed whole).
    Raises `EventDigestMismatch` or `EventLogDoesNotReplay`.
    """
    for imr in range(RUNTIME_REGISTER):
        measured = [event.digest for event in events if event.imr == imr]
        replayed = _replay(measured) if measured else None
        note(_REPLAYED[imr], registers[imr], "any: the log has no event for it" if replayed is None else replayed)
        if replayed is not None and replayed != registers[imr]:
            raise EventLogDoesNotReplay(f"register {imr} does not follow from the event log")
    runtime = [event for event in events if event.imr == RUNTIME_REGISTER]
    signed = registers[RUNTIME_REGISTER]
    replays: list[bytes] = []
    # A log whose digests were stripped does not say which form it used; one boot uses one.
    for form in _FORMS:
        replays.append(_replay(_recomputed(event, form, note) for event in runtime))
        if replays[-1] == signed:
            break
    note(_REPLAYED[RUNTIME_REGISTER], signed, signed if signed in replays else tuple(replays))
    if signed not in replays:
        raise EventLogDoesNotReplay("register 3 does not follow from the event log")


def with_digests(events: Sequence[Event], signed: bytes) -> tuple[Event, ...]:
    """Return the log with the digests of runtime events that dstack left out, in the form by which it replays to the
    signed register 3: verifiers that do not recompute them need them stated.

    Raises `EventDigestMismatch` or `EventLogDoesNotReplay`. Judges no other register.
    """
    runtime = [event for event in events if event.imr == RUNTIME_REGISTER]
    verify_replay(runtime, (b"", b"", b"", signed))
    form = next(form for form in _FORMS if _replay(_recomputed(event, form, ignore) for event in runtime) == signed)
    return tuple(
        replace(event, digest=_recomputed(event, form, ignore)) if event.imr == RUNTIME_REGISTER else event
        for event in events
    )


def read_identity(events: Iterable[Event]) -> Identity:
    """Return the identity events, each exactly once and before `system-ready`, which is there exactly once.

    Call `verify_replay` first: this function trusts the log.
    """
    wanted = dict(_IDENTITY_EVENTS)
    found: dict[str, bytes] = {}
    ready = False
    for event in events:
        if event.imr != RUNTIME_REGISTER:
            continue
        if event.name == _READY:
            if ready:
                raise IdentityEventRepeated(f"the event log has {_READY} twice")
            ready = True
        elif event.name in wanted:
            if ready:
                raise IdentityEventLate(f"{event.name} was measured after {_READY}")
            if event.name in found:
                raise IdentityEventRepeated(f"the event log has {event.name} twice")
            found[event.name] = event.payload
    for name, size in _IDENTITY_EVENTS:
        if name not in found:
            raise IdentityEventMissing(f"the event log lacks {name}")
        if not found[name] or (size is not None and len(found[name]) != size):
            raise IdentityEventMalformed(f"the payload of {name} has {len(found[name])} bytes")
    if not ready:
        raise IdentityEventMissing(f"the event log lacks {_READY}")
    return Identity(*(found[name] for name, _ in _IDENTITY_EVENTS))


def colon_digest(name: str, payload: bytes) -> bytes:
    """The digest of a runtime event in every released dstack (event log version 1)."""
    tag = RUNTIME_EVENT_TYPE.to_bytes(4, "little")
    return hashlib.sha384(tag + b":" + name.encode() + b":" + payload).digest()


def canonical_digest(name: str, payload: bytes) -> bytes:
    """The digest of a runtime event when the compose asks for event log version 2."""
    document = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT_TYPE}
    return hashlib.sha384(jcs.dumps(document)).digest()


_FORMS: tuple[Callable[[str, bytes], bytes], ...] = (colon_digest, canonical_digest)


def _recomputed(event: Event, stripped_form: Callable[[str, bytes], bytes], note: Note) -> bytes:
    if not event.digest:
        return stripped_form(event.name, event.payload)
    if all(event.digest != form(event.name, event.payload) for form in _FORMS):
        note(f"digest of {event.name}", event.digest, tuple(form(event.name, event.payload) for form in _FORMS))
        raise EventDigestMismatch(f"the digest of {event.name} is not that of its payload")
    return event.digest


def _replay(digests: Iterable[bytes]) -> bytes:
    register = bytes(_DIGEST_BYTES)
    for digest in digests:
        register = hashlib.sha384(register + digest).digest()
    return register
